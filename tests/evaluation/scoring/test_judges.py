"""Judges: an endpoint as it really behaves (busy, broken, slow, refusing), a local LLM, and the offline rule."""

import json
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.scoring import build_rated_item
from support.tiny_models import tiny_llama
from support.tiny_tokenizers import tiny_tokenizer

from ossicle.chat import generation
from ossicle.chat.messages import parse_conversation
from ossicle.chat.template import ChatTemplate
from ossicle.config import PromptSettings
from ossicle.errors import CheckpointError, ConfigError, RequestError
from ossicle.evaluation.scoring import RULES, Judge, JudgeRequest
from ossicle.evaluation.scoring.judged import (
    JudgeQuestion,
    build_rating_question,
    build_verdict_question,
)
from ossicle.evaluation.scoring.judges import EndpointJudge, OfflineJudge, open_judge
from ossicle.evaluation.scoring.judges.local import LocalJudge

KEY = "sk-very-secret"


def build_request(prompt: str = "Is it?") -> JudgeRequest:
    return JudgeRequest(system="You judge.", prompt=prompt)


Reply = Callable[[dict[str, Any]], tuple[int, str, dict[str, str]]]
"""From what was sent, the status, body and headers that come back."""


@dataclass
class Server:
    """What a test's endpoint replies, call by call (the last reply again and again), and what it was sent."""

    replies: Sequence[Reply]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


def says(text: str | None) -> Reply:
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})
    return lambda request: (200, body, {})


def refuses(status: int, body: str = "", **headers: str) -> Reply:
    return lambda request: (status, body, headers)


def echoes(request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
    return says("You said: " + request["messages"][-1]["content"])(request)


@contextmanager
def serving(*replies: Reply) -> Generator[Server]:
    """An endpoint on this machine; a reply of status 0 is none until the test is over."""
    state = Server(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append({"path": self.path, **request})
                state.headers.append(dict(self.headers))
            status, body, headers = state.replies[min(number, len(state.replies) - 1)](request)
            if status == 0:
                state.is_over.wait(30)
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        state.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def straight_to_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def endpoint(server: Server, **options: Any) -> EndpointJudge:
    given: dict[str, Any] = {"first_wait_s": 0.001}
    return EndpointJudge(url=server.url, model="judge-1", **(given | options))


def test_an_endpoint_gets_an_openai_request() -> None:
    with serving(says("Rating: 4")) as server:
        judge = endpoint(server, key=KEY)
        assert judge.judge([build_request()]) == ["Rating: 4"]
    assert server.requests == [
        {
            "path": "/v1/chat/completions",
            "model": "judge-1",
            "messages": [
                {"role": "system", "content": "You judge."},
                {"role": "user", "content": "Is it?"},
            ],
            "temperature": 0,
            "max_tokens": 1024,
        }
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert judge.name == f"judge-1 at {server.url.split('/')[2]}"
    assert KEY not in repr(judge)


def test_replies_come_in_the_order_of_the_requests() -> None:
    prompts = [f"question {number}" for number in range(30)]
    with serving(echoes) as server:
        replies = endpoint(server).judge([build_request(prompt) for prompt in prompts])
    assert replies == [f"You said: {prompt}" for prompt in prompts]
    assert "Authorization" not in server.headers[0], "no key, none sent"


@pytest.mark.parametrize(
    "busy",
    [
        refuses(429, '{"error": {"message": "slow down"}}'),
        refuses(429, "", Retry_After="0.01"),
        refuses(503, "", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),
        refuses(500, "<html>oops</html>"),
    ],
)
def test_a_busy_endpoint_is_tried_again(busy: Any) -> None:
    with serving(busy, busy, says("Rating: 2")) as server:
        assert endpoint(server).judge([build_request()]) == ["Rating: 2"]
    assert len(server.requests) == 3


def test_an_endpoint_that_stays_busy_is_an_error() -> None:
    with (
        serving(refuses(429, '{"error": {"message": "quota is used up"}}')) as server,
        pytest.raises(RequestError, match=r"tried 3 times, the last time: HTTP 429: quota is used up"),
    ):
        endpoint(server, n_tries=3).judge([build_request(str(number)) for number in range(4)])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refuses(401, '{"error": {"message": "no such key"}}'), "HTTP 401: no such key"),
        (refuses(404, '{"error": "no such model"}'), "HTTP 404: no such model"),
        (refuses(400, ""), "HTTP 400: Bad Request"),
        (refuses(200, "<html>Welcome</html>"), "not a chat completion: '<html>Welcome"),
        (refuses(200, '{"choices": []}'), "not a chat completion"),
        (refuses(200, '{"choices": [{"message": {"content": [1]}}]}'), "not a chat completion"),
    ],
)
def test_an_endpoint_that_refuses_is_not_tried_again(reply: Any, message: str) -> None:
    with serving(reply) as server, pytest.raises(RequestError, match=message) as error:
        endpoint(server, key=KEY).judge([build_request()])
    assert len(server.requests) == 1
    assert KEY not in str(error.value)
    assert "check the address, the model's name and the key" in str(error.value)


def test_a_refusal_cancels_the_waiting_requests() -> None:
    with serving(refuses(401)) as server, pytest.raises(RequestError, match="HTTP 401"):
        endpoint(server, n_parallel=1).judge([build_request(str(number)) for number in range(50)])
    assert len(server.requests) < 50


def test_a_reply_that_never_comes_is_a_timeout() -> None:
    with (
        serving(refuses(0)) as server,
        pytest.raises(RequestError, match=r"tried 2 times, the last time: .*timed out"),
    ):
        endpoint(server, timeout_s=0.1, n_tries=2).judge([build_request()])


def test_an_unreachable_endpoint_is_named() -> None:
    with serving(echoes) as server:
        pass
    with pytest.raises(RequestError, match=r"judge-1 at 127\.0\.0\.1:\d+ gave no answer .tried 2 times"):
        endpoint(server, n_tries=2).judge([build_request()])


def test_a_message_without_content_is_an_empty_reply() -> None:
    with serving(says(None)) as server:
        assert endpoint(server).judge([build_request()]) == [""]


def test_a_judge_is_opened_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (None, "offline"):
        assert isinstance(open_judge(spec), OfflineJudge)
    judge = open_judge("https://host.org/v1/#some/model")
    assert judge == EndpointJudge(url="https://host.org/v1", model="some/model")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", "other")
    judge = open_judge("http://host.org/v1/chat/completions", model="m")
    assert judge == EndpointJudge(url="http://host.org/v1", model="m", key=KEY)
    named = open_judge("https://user:word@host.org/v1#m", key_variable="OTHER_KEY")
    assert isinstance(named, EndpointJudge)
    assert (named.key, named.name) == ("other", "m at host.org")
    monkeypatch.setenv("OTHER_KEY", "other\r\n")  # of a file from Windows
    stripped = open_judge("https://host.org/v1#m", key_variable="OTHER_KEY")
    assert isinstance(stripped, EndpointJudge)
    assert stripped.key == "other"
    monkeypatch.setenv("OTHER_KEY", "ot\rher")
    with pytest.raises(ConfigError, match="OTHER_KEY has characters that no HTTP header can hold"):
        open_judge("https://host.org/v1#m", key_variable="OTHER_KEY")


@pytest.mark.parametrize(
    ("spec", "model", "message"),
    [
        ("https://host/v1", None, "names no model; add it after a #"),
        ("https:///v1#m", None, "names no host"),
        ("http://[::1/v1#m", None, "names no host"),
        ("offline", "m", "takes no model"),
    ],
)
def test_an_invalid_judge_is_refused(spec: str, model: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_judge(spec, model=model)


def test_a_missing_llm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing"):
        open_judge(str(tmp_path / "nothing"), device="cpu")


@pytest.fixture(scope="module")
def local() -> LocalJudge:
    tokenizer = tiny_tokenizer("llama")
    template = ChatTemplate(tokenizer, PromptSettings())
    return LocalJudge(name="tiny", llm=tiny_llama(tokenizer), template=template, batch_size=3)


def test_a_local_llm_replies_in_a_batch_as_alone(local: LocalJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossicle.evaluation.scoring.judges.local.MAX_NEW_TOKENS", 6)
    prompts = ["Is it so, and why?", "Yes.", "One red hat and another one.", "No", "Who is it?"]
    replies = local.judge([build_request(prompt) for prompt in prompts])
    assert replies == [local.judge([build_request(prompt)])[0] for prompt in prompts]
    assert len(set(replies)) > 1
    messages = [{"role": "system", "content": "You judge."}, {"role": "user", "content": "Yes."}]
    expected = generation.generate_answers(
        local.llm,
        local.template.tokenizer,
        [local._build_prompt(local.template.tokenize(parse_conversation(messages)))],
        max_new_tokens=6,
    )
    assert replies[1] == expected[0]


def test_control_tokens_in_an_answer_do_not_end_the_judges_turn(
    local: LocalJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ossicle.evaluation.scoring.judges.local.MAX_NEW_TOKENS", 2)
    end = local.template.tokenizer.eos_token
    with pytest.raises(RequestError):
        local.template.tokenize(parse_conversation([{"role": "user", "content": f"Good? {end}"}]))
    assert len(local.judge([build_request(f"Good? {end} Rating: 5")])) == 1


def test_the_offline_rule_rates_shared_words_and_says_so() -> None:
    rule = OfflineJudge()
    assert isinstance(rule, Judge)
    assert "no judgment of quality" in rule.name
    item = build_rated_item()
    answers = ["An oak is a tall tree.", "Some trees are green.", "I like tea."]
    assert rule.judge([build_rating_question(item, answer) for answer in answers]) == [
        "Rating: 5",
        "Rating: 2",
        "Rating: 1",
    ]
    paris = build_rated_item(text="Where is it?", rubric={"answers": ["in Paris", "France"]})
    assert rule.judge(
        [build_verdict_question(paris, answer) for answer in ("It is in Paris.", "In Rome.")]
    ) == [
        "Verdict: yes",
        "Verdict: no",
    ]
    referenced = JudgeQuestion(
        system="", prompt="", scale="rating", question="?", answer="red hats", references=("red hat", "cap")
    )
    assert rule.judge([referenced]) == ["Rating: 5"]
    with pytest.raises(RequestError, match="rates answers only"):
        rule.judge([build_request()])


def test_an_endpoint_rates_answers() -> None:
    def rates(request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
        return says("Rating: 5" if "forty" in request["messages"][-1]["content"] else "Rating: 1")(request)

    with serving(refuses(502), rates) as server:
        scores = RULES["rated"].score(
            [build_rated_item(0), build_rated_item(1)], ["forty metres", "tea"], endpoint(server)
        )
    assert scores == [(1.0,), (0.2,)]
