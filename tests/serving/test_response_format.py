"""Answers of a given shape: each is JSON that its schema allows, alone and in a batch."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from support.serve_app import serve_app
from support.tiny_tokenizers import tiny_tokenizer

import ossicle
from ossicle.chat.grammar import GrammarCompiler, build_json_grammar
from ossicle.errors import RequestError
from ossicle.serving import grammar_check
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.grammar_check import check_grammar
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics

MODEL = "pocket/ear"
QUESTIONS = ["what is the capital of japan", "how many legs does a dog have"]
SCHEMA = {
    "type": "object",
    "properties": {
        "word": {"enum": ["yes", "no"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["word", "number"],
    "additionalProperties": False,
}
SHAPE: Any = {"type": "json_schema", "json_schema": {"name": "shape", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    metrics = Metrics()
    engine = LocalEngine(ossicle.load(MODEL, device="cpu"), metrics)
    with serve_app(create_app(engine, ServerSettings(model=MODEL), metrics)) as url:
        yield openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)


def ask(client: openai.OpenAI, text: str, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=MODEL, messages=messages, **options).choices[0]


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "seed": 1}, {"temperature": 1.0, "top_p": 0.1}])
def test_an_answer_is_what_its_schema_allows(client: openai.OpenAI, options: dict[str, Any]) -> None:
    choice = ask(client, QUESTIONS[0], response_format=SHAPE, max_tokens=100, **options)
    value = json.loads(choice.message.content)
    assert value["word"] in ("yes", "no")
    assert 0 <= value["number"] <= 99
    assert value.keys() == {"word", "number"}
    assert choice.finish_reason == "stop"


def test_shaped_and_free_answers_of_one_batch_are_those_of_each_alone(client: openai.OpenAI) -> None:
    requests = [
        (text, shape) for text in QUESTIONS for shape in ({"type": "text"}, SHAPE, {"type": "json_object"})
    ]

    def answer(request: tuple[str, Any]) -> str:
        return ask(client, request[0], response_format=request[1], max_tokens=40).message.content

    alone = list(map(answer, requests))
    with ThreadPoolExecutor(len(requests)) as pool:
        assert list(pool.map(answer, requests)) == alone
    assert all(answer.startswith("{") for answer in alone[2::3])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("json_object", "response_format is malformed"),
        ({"type": "xml"}, "response_format is malformed"),
        ({"type": "json_schema"}, "response_format is malformed"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": 7}}, "response_format is malformed"),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "objekt"}}},
            "cannot be used",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 70_000]}}},
            "more than 65536 characters",
        ),
    ],
)
def test_a_shape_that_is_none_is_refused(client: openai.OpenAI, shape: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        ask(client, QUESTIONS[0], response_format=shape)


def test_a_schema_that_takes_hours_to_read_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "TIME_S", 1.0)
    patterns = [{"type": "string", "pattern": f"a.*{number}"} for number in range(200)]
    schema = {"type": "object", "properties": {"a": {"allOf": patterns}}, "required": ["a"]}
    tokenizer = tiny_tokenizer("llama")
    compiler = GrammarCompiler(tokenizer, len(tokenizer), [0])
    with pytest.raises(RequestError, match="takes more than 1 s to read: send one with fewer"):
        check_grammar(compiler, build_json_grammar(schema))
    monkeypatch.undo()
    check_grammar(compiler, build_json_grammar({"type": "object"}))
    with pytest.raises(RequestError, match="the JSON schema cannot be used"):
        check_grammar(compiler, build_json_grammar({"type": "no such type"}))
