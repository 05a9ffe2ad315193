"""The web page in a browser: a real server with the pocket ear, and a microphone that plays a question."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import soundfile
import uvicorn
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from support.fake_synthesizer import FakeSynthesizer

import ossicle
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.ear import Ear
from ossicle.evaluation import Item, load_suite
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.engine import ChatRequest, Sound
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.server import bind_socket
from ossicle.serving.synthesis.base import Synthesizer

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

MODEL = "pocket/ear"
KEY = "open sesame"
TIMEOUT_MS = 60_000  # for a browser on a machine that runs other tests
SILENCE_BEFORE_S, SILENCE_BETWEEN_S, SILENCE_AFTER_S = 0.6, 8.0, 30.0  # around the two questions
QUESTION_OVER = re.compile(r"0:(0[3-9]|[1-5])|[1-9]:")  # the page's clock after the question: 0:03 or later
MAX_ATTEMPTS = 3  # a busy machine records with gaps
LOAD_ERROR = "Failed to load resource"  # the console's message for an error status
CHAT_ROUTE, MODELS_ROUTE, REALTIME_ROUTE = "**/v1/chat/completions", "**/v1/models", "**/v1/realtime*"


class RecordingEngine(LocalEngine):
    """An engine that keeps the requests it gets, and never ends an answer while it is told so."""

    requests: list[ChatRequest]
    is_endless = False

    async def stream(self, request: ChatRequest) -> Any:
        self.requests.append(request)
        chunks = await super().stream(request)
        return self._hold(chunks) if self.is_endless else chunks

    async def _hold(self, chunks: Any) -> AsyncIterator[dict[str, Any]]:
        async for chunk in chunks:
            yield chunk
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                await asyncio.sleep(600)


@dataclass(frozen=True)
class Site:
    """A running server."""

    url: str
    engine: RecordingEngine

    @property
    def last_messages(self) -> list[dict[str, Any]]:
        """The last conversation, as `Ear.chat` takes it."""
        return [
            {**message, "content": [_to_ear_part(part) for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in self.engine.requests[-1].body["messages"]
        ]


def _to_ear_part(part: dict[str, Any]) -> dict[str, Any]:
    sound = part.get("audio")
    return {"type": "audio", "audio": sound.samples} if isinstance(sound, Sound) else part


@dataclass(frozen=True)
class Visit:
    """An open page, its console messages and its requests."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected_console: list[str] = field(default_factory=list)
    """How console messages may begin."""

    @property
    def talk(self) -> Locator:
        return self.page.get_by_role("button", name="Talk")

    @property
    def live(self) -> Locator:
        return self.page.get_by_role("button", name="Live")

    @property
    def hint(self) -> Locator:
        return self.page.locator("#hint")

    def answer(self, number: int = 0, name: str = "From audio") -> Locator:
        """The article of an answer."""
        heading = self.page.get_by_role("heading", name=name)
        return self.page.get_by_role("article").filter(has=heading).nth(number)

    def send_file(self, path: Path) -> None:
        self.page.get_by_label("Sound file").set_input_files(path)

    def send_text(self, text: str) -> None:
        self.page.get_by_label("Type a message").fill(text)
        self.page.get_by_role("button", name="Send text").click()


@contextmanager
def serve(ear: Ear, *, keys: tuple[str, ...] = (), synthesizer: Synthesizer | None = None) -> Generator[Site]:
    metrics = Metrics()
    engine = RecordingEngine(ear, metrics)
    engine.requests = []
    app = create_app(engine, ServerSettings(model=MODEL, keys=keys, synthesizer=synthesizer), metrics)
    listener = bind_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}/", engine)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load(MODEL)


@pytest.fixture(scope="module")
def site(ear: Ear) -> Iterator[Site]:
    with serve(ear) as site:
        yield site


@pytest.fixture(scope="module")
def items() -> dict[str, Item]:
    return {item.id: item for item in load_suite("pocket")}


@pytest.fixture(scope="module")
def question(items: dict[str, Item]) -> Item:
    """The question that the microphone plays."""
    return items["0067"]


@pytest.fixture(scope="module")
def files(items: dict[str, Item], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound files by their text, and one that is not audio."""
    folder = tmp_path_factory.mktemp("sounds")
    paths = {}
    for number in ("0057", "0002"):
        item = items[number]
        paths[item.text] = folder / f"{item.text}.wav"
        soundfile.write(paths[item.text], load_audio(item.audio), SAMPLE_RATE, subtype="PCM_16")
    paths["no sound"] = folder / "no sound.wav"
    paths["no sound"].write_text("this is not audio")
    return paths


@contextmanager
def launch_browser(folder: Path, *sounds: np.ndarray) -> Generator[Browser]:
    """Launches a browser whose microphone plays sounds, and then silence."""
    pieces = [np.zeros(round(SILENCE_BEFORE_S * SAMPLE_RATE), np.float32)]
    for sound in sounds:
        pieces += [sound, np.zeros(round(SILENCE_BETWEEN_S * SAMPLE_RATE), np.float32)]
    pieces.append(np.zeros(round(SILENCE_AFTER_S * SAMPLE_RATE), np.float32))
    path = folder / "microphone.wav"
    soundfile.write(path, np.concatenate(pieces), SAMPLE_RATE, subtype="PCM_16")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={path}%noloop",
                "--host-resolver-rules=MAP ossicle.test 127.0.0.1",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser(
    question: Item, items: dict[str, Item], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    sounds = [load_audio(item.audio) for item in (question, items["0057"])]
    with launch_browser(tmp_path_factory.mktemp("microphone"), *sounds) as browser:
        yield browser


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens pages, and checks that none called another server or has an unexpected console message."""
    visits: list[tuple[str, Visit]] = []

    def open_url(
        url: str, *, microphone: bool = True, width: int = 900, script: str = "", **options: Any
    ) -> Visit:
        permissions = ["microphone"] if microphone else []
        context = browser.new_context(
            permissions=permissions, viewport={"width": width, "height": 760}, **options
        )
        visit = Visit(context.new_page())
        visits.append((url, visit))
        visit.page.set_default_timeout(TIMEOUT_MS)
        visit.page.add_init_script(script)
        visit.page.on("console", lambda message: visit.console.append(message.text))
        visit.page.on("pageerror", lambda error: visit.console.append(str(error)))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.goto(url)
        return visit

    yield open_url
    for url, visit in visits:
        visit.page.context.close()
        allowed = tuple(visit.expected_console)
        assert [message for message in visit.console if not message.startswith(allowed)] == []
        assert [target for target in visit.requests if not target.startswith((url, "blob:", "data:"))] == []


def wait_for_answer(site: Site, ear: Ear, answer: Locator) -> str:
    """Waits for an answer, checks that it is the ear's answer to the last conversation, and returns it."""
    expect(answer).to_have_attribute("data-state", "done")
    shown = answer.locator("[data-part=text]").inner_text()
    assert shown == ear.chat(site.last_messages)
    return shown


def speak_until_answered(
    site: Site, ear: Ear, visit: Visit, expected: str, speak: Callable[[], None]
) -> bool:
    """Whether the expected answer comes within a few attempts."""
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            visit.page.get_by_role("button", name="New conversation").click()
        speak()
        if wait_for_answer(site, ear, visit.answer()) == expected:
            return True
    return False


# Voice


def test_a_click_starts_recording_and_a_second_click_sends(
    open_page: Callable[..., Visit], site: Site, ear: Ear, question: Item
) -> None:
    assert question.answer
    visit = open_page(site.url)
    expect(visit.page).to_have_title(f"ossicle · {MODEL}")
    levels: list[float] = []

    def speak() -> None:
        visit.page.get_by_label("Type a message").fill("Answer in capital letters.")
        visit.talk.click()
        expect(visit.talk).to_have_attribute("aria-pressed", "true")
        expect(visit.page.locator("#time")).to_have_text(QUESTION_OVER)
        expect(visit.page.locator("#levels")).to_be_visible()
        levels[:] = visit.page.evaluate("recording.levels")
        visit.talk.click()

    assert speak_until_answered(site, ear, visit, question.answer.upper(), speak)
    assert min(levels) < 0.1
    assert max(levels) > 0.5
    assert [part["type"] for part in site.last_messages[-1]["content"]] == ["audio", "text"]
    expect(visit.talk).to_have_attribute("aria-pressed", "false")
    expect(visit.page.get_by_label("Type a message")).to_be_empty()
    expect(visit.answer()).to_contain_text(re.compile(r"First token after \d"))
    expect(visit.answer()).to_contain_text(re.compile(r"\d+ tokens in, \d+ of them audio; \d+ out"))
    expect(visit.page.get_by_role("status")).to_have_text(f"From audio: {question.answer.upper()}")
    played_s = visit.page.get_by_label("What you said in turn 1").evaluate("sound => sound.duration")
    assert played_s > len(load_audio(question.audio)) / SAMPLE_RATE


def test_holding_the_button_records_until_it_is_released(
    open_page: Callable[..., Visit], site: Site, ear: Ear, question: Item, files: dict[str, Path]
) -> None:
    assert question.answer
    visit = open_page(site.url)

    def speak() -> None:
        visit.talk.hover()
        visit.page.mouse.down()
        expect(visit.page.locator("#time")).to_have_text(QUESTION_OVER)
        visit.page.mouse.up()

    assert speak_until_answered(site, ear, visit, question.answer, speak)
    first = site.last_messages
    visit.send_file(files["what does the cow say"])
    assert wait_for_answer(site, ear, visit.answer(1)) == "The cow says moo."
    again, reply, _ = site.last_messages
    assert np.array_equal(again["content"][0]["audio"], first[0]["content"][0]["audio"])
    assert reply == {"role": "assistant", "content": question.answer}


def test_text_sent_while_recording_goes_with_the_recording(
    open_page: Callable[..., Visit], site: Site, ear: Ear
) -> None:
    visit = open_page(site.url)
    visit.talk.click()
    expect(visit.page.locator("#time")).to_have_text(QUESTION_OVER)
    visit.send_text("Answer in capital letters.")
    wait_for_answer(site, ear, visit.answer())
    assert [part["type"] for part in site.last_messages[-1]["content"]] == ["audio", "text"]
    expect(visit.talk).to_have_attribute("aria-pressed", "false")


def test_the_page_can_be_used_with_the_keyboard_alone(
    open_page: Callable[..., Visit], site: Site, ear: Ear
) -> None:
    visit = open_page(site.url)

    def tab_to(target: Locator) -> None:
        for _ in range(40):
            visit.page.keyboard.press("Tab")
            if target.evaluate("element => element === document.activeElement"):
                return
        pytest.fail(f"Tab does not reach {target}")

    tab_to(visit.talk)
    visit.page.keyboard.press("Enter")
    expect(visit.hint).to_have_text("Press again to send.")
    visit.page.keyboard.press("Escape")
    expect(visit.hint).to_have_text("Hold to talk, or click to start and stop.")
    visit.page.keyboard.down(" ")
    expect(visit.hint).to_have_text("Release to send.")
    expect(visit.page.locator("#time")).to_have_text(QUESTION_OVER)
    visit.page.keyboard.up(" ")
    wait_for_answer(site, ear, visit.answer())
    tab_to(visit.page.get_by_role("button", name="Compare with transcribe-then-answer"))
    visit.page.keyboard.press("Enter")
    expect(visit.answer(name="Transcribe-then-answer")).to_have_attribute("data-state", "done")
    tab_to(visit.page.get_by_label("Type a message"))
    visit.page.keyboard.type("What is the plural of leaf?")
    visit.page.keyboard.press("Enter")
    assert wait_for_answer(site, ear, visit.answer(name="From text")) == "The plural of leaf is leaves."
    tab_to(visit.page.get_by_label("Sound file"))
    tab_to(visit.page.get_by_role("button", name="New conversation"))  # Tab wraps around


def test_a_denied_microphone_is_explained(open_page: Callable[..., Visit], site: Site) -> None:
    visit = open_page(site.url, microphone=False)
    visit.talk.click()
    expect(visit.hint).to_contain_text("The browser does not allow the microphone. Allow it for this page")
    expect(visit.page.get_by_role("status")).to_contain_text("The browser does not allow the microphone.")
    expect(visit.talk).to_have_attribute("aria-pressed", "false")


def test_a_missing_microphone_is_explained(open_page: Callable[..., Visit], site: Site) -> None:
    script = (
        "MediaDevices.prototype.getUserMedia = async () => { throw new DOMException('', 'NotFoundError'); };"
    )
    visit = open_page(site.url, script=script)
    visit.talk.click()
    expect(visit.hint).to_contain_text("No microphone was found. Connect one")


def test_an_insecure_origin_is_explained(open_page: Callable[..., Visit], site: Site) -> None:
    visit = open_page(site.url.replace("127.0.0.1", "ossicle.test"))
    expect(visit.talk).to_be_disabled()
    expect(visit.hint).to_contain_text("only on localhost and over https")


# A live conversation


def test_a_live_conversation_is_heard_answered_and_interrupted(
    open_page: Callable[..., Visit], site: Site, ear: Ear, question: Item, items: dict[str, Item]
) -> None:
    visit = open_page(site.url)
    visit.send_text("What is the plural of leaf?")
    wait_for_answer(site, ear, visit.answer(name="From text"))
    site.engine.is_endless = True
    visit.live.click()
    expect(visit.live).to_have_attribute("aria-pressed", "true")
    expect(visit.talk).to_be_disabled()
    words = visit.page.locator(".user p")
    expect(words.nth(1)).to_have_text(question.text)
    first, second = visit.answer(0), visit.answer(1)
    expect(first).to_have_attribute("data-state", "running")
    expect(visit.hint).to_have_text("Speak to interrupt the answer.")
    expect(first).to_have_attribute("data-state", "stopped")  # by the second question
    site.engine.is_endless = False
    expect(first).to_contain_text("Interrupted")
    expect(words.nth(2)).to_have_text(items["0057"].text)
    wait_for_answer(site, ear, second)
    expect(visit.hint).to_have_text("Speak when you like.")
    expect(second).to_contain_text(re.compile(r"First token after [\d.]+\sm?s, last after"))
    expect(second.locator(".time-line")).to_be_visible()
    assert [message["role"] for message in site.last_messages] == ["user", "assistant"] * 2 + ["user"]
    played_s = visit.page.get_by_label("What you said in turn 3").evaluate("sound => sound.duration")
    assert len(load_audio(items["0057"].audio)) / SAMPLE_RATE < played_s < 8
    visit.live.click()
    expect(visit.live).to_have_attribute("aria-pressed", "false")
    expect(visit.talk).to_be_enabled()
    visit.page.reload()
    expect(visit.answer(1)).to_have_attribute("data-state", "done")
    visit.live.click()  # with both turns of sound before it
    expect(words.nth(3)).to_have_text(question.text)
    wait_for_answer(site, ear, visit.answer(2))
    heard = [part["type"] for turn in site.last_messages[2::2] for part in turn["content"]]
    assert heard == ["audio"] * 3
    visit.page.get_by_role("button", name="New conversation").click()
    expect(visit.live).to_have_attribute("aria-pressed", "false")


def test_live_answers_are_spoken_and_cut_where_they_are_interrupted(
    open_page: Callable[..., Visit], ear: Ear, question: Item, items: dict[str, Item]
) -> None:
    voice, sent = FakeSynthesizer(s_per_character=0.6), []
    with serve(ear, synthesizer=voice) as site:
        visit = open_page(site.url)
        visit.page.on(
            "websocket", lambda socket: socket.on("framesent", lambda data: sent.append(json.loads(data)))
        )
        visit.page.get_by_label("Speak live answers").check()
        visit.live.click()
        first, second = visit.answer(0), visit.answer(1)
        text = wait_for_answer(site, ear, first)
        expect(visit.hint).to_have_text("Speak to interrupt the answer.")
        expect(second).to_have_attribute("data-state", "done")  # to the second question
        visit.live.click()
    assert voice.asked[0][0] == text
    (cut,) = (event for event in sent if event["type"] == "conversation.item.truncate")
    assert 0 < cut["audio_end_ms"] < 600 * len(text)
    (answer,) = (message for message in site.last_messages if message["role"] == "assistant")
    kept = answer["content"][0]["text"]
    assert text.startswith(kept)
    assert kept != text


def test_the_browser_speaks_live_answers_where_the_server_cannot(
    open_page: Callable[..., Visit], site: Site, ear: Ear
) -> None:
    listen = "window.said = []; speechSynthesis.speak = (utterance) => said.push(utterance.text);"
    visit = open_page(site.url, script=listen)
    visit.page.get_by_label("Speak live answers").check()
    visit.live.click()
    text = wait_for_answer(site, ear, visit.answer())
    visit.page.wait_for_function("said.length > 0")
    assert " ".join(visit.page.evaluate("said")) == text


def test_what_stops_a_live_conversation_is_explained(open_page: Callable[..., Visit], site: Site) -> None:
    visit = open_page(site.url, microphone=False)
    visit.live.click()
    expect(visit.hint).to_contain_text("The browser does not allow the microphone.")
    expect(visit.live).to_have_attribute("aria-pressed", "false")
    visit = open_page(site.url)
    visit.page.route_web_socket(REALTIME_ROUTE, lambda socket: socket.close())
    visit.live.click()
    expect(visit.hint).to_contain_text("The server refused a live conversation.")
    visit.page.route_web_socket(REALTIME_ROUTE, lambda socket: socket.on_message(lambda _: socket.close()))
    visit.live.click()
    expect(visit.hint).to_contain_text("The live conversation broke off.")
    expect(visit.talk).to_be_enabled()


# Turns


def test_a_conversation_is_kept_over_a_reload(
    open_page: Callable[..., Visit], site: Site, ear: Ear, files: dict[str, Path]
) -> None:
    visit = open_page(site.url)
    visit.send_file(files["what does the cow say"])
    wait_for_answer(site, ear, visit.answer())
    before = site.last_messages
    visit.page.reload()
    expect(visit.answer().locator("[data-part=text]")).to_have_text("The cow says moo.")
    expect(visit.answer()).to_contain_text(re.compile(r"First token after .*\d+ tokens in"))
    visit.page.get_by_role("button", name="Compare with transcribe-then-answer").click()
    expect(visit.answer(name="Transcribe-then-answer")).to_have_attribute("data-state", "done")
    visit.send_text("What is the plural of leaf?")
    wait_for_answer(site, ear, visit.answer(name="From text"))
    again, reply, _ = site.last_messages
    assert np.array_equal(again["content"][0]["audio"], before[0]["content"][0]["audio"])
    assert reply == {"role": "assistant", "content": "The cow says moo."}
    visit.page.get_by_role("button", name="New conversation").click()
    visit.page.reload()
    expect(visit.page.get_by_role("article")).to_have_count(0)


def test_a_conversation_too_large_to_keep_loses_its_oldest_turns(
    open_page: Callable[..., Visit], site: Site, ear: Ear
) -> None:
    visit = open_page(site.url)
    for noun in ("leaf", "dog"):
        visit.send_text(f"What is the plural of {noun}?")
        wait_for_answer(site, ear, visit.answer(int(noun == "dog"), name="From text"))
    visit.page.evaluate("turns[0].text = 'a'.repeat(6e6); storeConversation();")
    visit.page.reload()
    expect(visit.page.locator(".user p")).to_have_text(["What is the plural of dog?"])


ANSWER = """# Two ways

Use **bold**, *slant* or `a < b`:
1. one <img src=x onerror=alert(1)>
2. [two](https://ossicle.test/) and [three](javascript:alert(1))

- a
  more
```python
print("**x**")

# y
```
the end"""
HTML = (
    "<h4>Two ways</h4>"
    "<p>Use <strong>bold</strong>, <em>slant</em> or <code>a &lt; b</code>:</p>"
    "<ol><li>one &lt;img src=x onerror=alert(1)&gt;</li>"
    '<li><a href="https://ossicle.test/" rel="noopener noreferrer" target="_blank">two</a>'
    " and [three](javascript:alert(1))</li></ol>"
    "<ul><li>a\nmore</li></ul>"
    '<pre><code>print("**x**")\n\n# y</code></pre>'
    "<p>the end</p>"
)


def test_answers_in_markdown_are_shown_and_copied(open_page: Callable[..., Visit], site: Site) -> None:
    visit = open_page(site.url)
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chunks = [
        {"choices": [{"delta": {"content": ANSWER[start : start + 7]}}]} for start in range(0, len(ANSWER), 7)
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    visit.page.route(CHAT_ROUTE, lambda route: route.fulfill(content_type="text/event-stream", body=body))
    visit.send_text("How?")
    answer = visit.answer(name="From text")
    expect(answer).to_have_attribute("data-state", "done")
    assert answer.locator("[data-part=text]").inner_html().replace(' start="1"', "") == HTML
    answer.get_by_role("button", name="Copy").click()
    expect(answer.get_by_role("button", name="Copied")).to_be_visible()
    assert visit.page.evaluate("navigator.clipboard.readText()") == ANSWER


def test_the_cascade_answers_on_request(
    open_page: Callable[..., Visit], site: Site, ear: Ear, files: dict[str, Path]
) -> None:
    visit = open_page(site.url)
    visit.page.get_by_text("System prompt").click()
    visit.page.get_by_role("textbox", name="System prompt").fill("You are a helpful assistant.")
    cow, outside = files["what does the cow say"], files["what is the opposite of outside"]
    visit.send_file(cow)
    wait_for_answer(site, ear, visit.answer())
    visit.send_file(outside)
    wait_for_answer(site, ear, visit.answer(1))
    system, _, reply, _ = site.last_messages
    visit.page.get_by_role("button", name="Compare with transcribe-then-answer").nth(1).click()
    cascade = visit.answer(name="Transcribe-then-answer")
    wait_for_answer(site, ear, cascade)
    transcripts = ear.transcribe([cow, outside])
    turns = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in transcripts]
    assert site.last_messages == [system, turns[0], reply, turns[1]]
    expect(cascade).to_contain_text(f"Transcript: “{transcripts[1]}”")
    expect(cascade).to_contain_text(re.compile(r"First token after \d"))
    assert sum(url.endswith("/transcriptions") for url in visit.requests) == 2


def test_text_alone_is_answered(open_page: Callable[..., Visit], site: Site, ear: Ear) -> None:
    visit = open_page(site.url)
    expect(visit.page.get_by_role("button", name="Send text")).to_be_disabled()
    visit.send_text("What is the plural of leaf?")
    assert wait_for_answer(site, ear, visit.answer(name="From text")) == "The plural of leaf is leaves."
    expect(visit.page.get_by_role("button", name="Compare with transcribe-then-answer")).to_be_hidden()


def test_a_new_conversation_forgets_earlier_turns(
    open_page: Callable[..., Visit], site: Site, ear: Ear, files: dict[str, Path]
) -> None:
    visit = open_page(site.url)
    visit.send_file(files["what does the cow say"])
    wait_for_answer(site, ear, visit.answer())
    sound = visit.page.get_by_label("What you said in turn 1").get_attribute("src")
    plays = (
        "url => new Promise(resolve => Object.assign(new Audio(url),"
        " {onloadedmetadata: () => resolve(true), onerror: () => resolve(false)}))"
    )
    assert visit.page.evaluate(plays, sound)
    visit.page.get_by_role("button", name="New conversation").click()
    expect(visit.page.get_by_role("article")).to_have_count(0)
    assert not visit.page.evaluate(plays, sound)
    visit.expected_console.append(LOAD_ERROR)
    visit.send_text("What is the plural of leaf?")
    wait_for_answer(site, ear, visit.answer(name="From text"))
    assert len(site.last_messages) == 1


# Errors


def test_a_server_error_is_shown_in_its_turn_and_left_out_of_the_conversation(
    open_page: Callable[..., Visit], site: Site, ear: Ear, files: dict[str, Path]
) -> None:
    visit = open_page(site.url)
    visit.expected_console.append(LOAD_ERROR)
    visit.send_file(files["no sound"])
    expect(visit.page.get_by_role("alert")).to_contain_text("The server refused the request")
    expect(visit.page.get_by_role("alert")).to_contain_text("is not audio that can be read")
    visit.send_file(files["what does the cow say"])
    assert wait_for_answer(site, ear, visit.answer(1)) == "The cow says moo."
    assert len(site.last_messages) == 1


def test_a_request_to_a_busy_server_can_be_tried_again(
    open_page: Callable[..., Visit], site: Site, ear: Ear
) -> None:
    visit = open_page(site.url)
    visit.expected_console.append(LOAD_ERROR)
    busy = {
        "error": {"message": "128 requests wait", "type": "rate_limit_error", "param": None, "code": None}
    }
    visit.page.route(CHAT_ROUTE, lambda route: route.fulfill(status=429, json=busy), times=1)
    visit.send_text("What is the plural of leaf?")
    expect(visit.page.get_by_role("alert")).to_have_text(
        "The server is busy: try again in a moment128 requests wait"
    )
    visit.page.get_by_role("button", name="Try again").click()
    assert wait_for_answer(site, ear, visit.answer(name="From text")) == "The plural of leaf is leaves."
    expect(visit.page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "cannot be reached"),
        ('data: {"choices": [{"delta": {"content": "The"}}]}\n\n', "broke off before its end"),
        ('data: {"error": {"message": "the LLM is gone"}}\n\n', "the LLM is gone"),
        ("data: {\n\n", "could not read the answer"),
    ],
)
def test_a_broken_answer_is_explained(
    open_page: Callable[..., Visit], site: Site, body: str | None, message: str
) -> None:
    visit = open_page(site.url)
    visit.expected_console.append(LOAD_ERROR)
    stream = {"content_type": "text/event-stream", "body": body}
    visit.page.route(CHAT_ROUTE, lambda route: route.abort() if body is None else route.fulfill(**stream))
    visit.send_text("What is the plural of leaf?")
    expect(visit.page.get_by_role("alert")).to_contain_text(message)


def test_an_answer_can_be_stopped(open_page: Callable[..., Visit], site: Site, ear: Ear) -> None:
    visit = open_page(site.url)
    visit.page.route(CHAT_ROUTE, lambda route: None)  # it is never answered
    visit.send_text("What is the plural of leaf?")
    visit.page.get_by_role("button", name="Stop").click()
    expect(visit.answer(name="From text")).to_have_attribute("data-state", "stopped")
    visit.page.unroute(CHAT_ROUTE)  # a request that was stopped before it was sent has met no route
    visit.page.get_by_role("button", name="Try again").click()
    wait_for_answer(site, ear, visit.answer(name="From text"))
    assert len(site.last_messages) == 1


def test_the_api_key_is_asked_for_until_it_is_valid(open_page: Callable[..., Visit], ear: Ear) -> None:
    with serve(ear, keys=(KEY,)) as site:
        visit = open_page(site.url)
        visit.expected_console.append(LOAD_ERROR)
        dialog = visit.page.get_by_role("dialog", name="This server needs an API key")
        reasons = ("Ask whoever runs this server for one.", "That key was not accepted.")
        for key, reason in zip(("a guess", KEY), reasons, strict=True):
            expect(dialog).to_contain_text(reason)
            dialog.get_by_label("API key").fill(key)
            with visit.page.expect_response(MODELS_ROUTE):
                dialog.get_by_role("button", name="Use this key").click()
        expect(visit.page).to_have_title(f"ossicle · {MODEL}")
        visit.page.reload()
        expect(visit.page).to_have_title(f"ossicle · {MODEL}")
        visit.send_text("What is the plural of leaf?")
        wait_for_answer(site, ear, visit.answer(name="From text"))
        assert not any("sesame" in url for url in visit.requests)
        visit.page.evaluate("sessionStorage.clear()")
        visit.send_text("What is the plural of dog?")
        dialog.get_by_role("button", name="Cancel").click()
        expect(visit.page.get_by_role("alert")).to_contain_text("An API key is needed")
        expect(visit.page.get_by_role("alert")).not_to_contain_text("Bearer")
        visit.page.context.close()


# Appearance and permissions


def test_the_page_fits_narrow_screens(
    open_page: Callable[..., Visit], site: Site, files: dict[str, Path]
) -> None:
    visit = open_page(site.url, width=320)
    visit.expected_console.append(LOAD_ERROR)
    visit.send_file(files["what does the cow say"])
    visit.page.get_by_role("button", name="Compare with transcribe-then-answer").click()
    expect(visit.answer(name="Transcribe-then-answer")).to_have_attribute("data-state", "done")
    visit.send_text("a" * 200)
    visit.send_file(files["no sound"])
    expect(visit.page.get_by_role("alert")).to_be_visible()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(open_page: Callable[..., Visit], site: Site, scheme: str) -> None:
    visit = open_page(site.url, color_scheme=scheme)
    read = "getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
    for front, back in [
        *(("ink", back) for back in ("page", "card", "wash", "error-wash")),
        *(("soft", back) for back in ("page", "card")),
        ("on-accent", "accent"),
        ("error", "card"),
        ("error", "error-wash"),
    ]:
        lighter, darker = sorted(
            (luminance(visit.page.evaluate(f"name => {read}", name)) for name in (front, back)), reverse=True
        )
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (front, back)


def luminance(color: str) -> float:
    """Returns the relative luminance of #rrggbb, as WCAG 2 defines it."""
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_page_may_run_only_its_own_script(open_page: Callable[..., Visit], site: Site) -> None:
    visit = open_page(site.url)
    violation = (
        "new Promise(resolve => document.addEventListener("
        "'securitypolicyviolation', event => resolve(event.effectiveDirective), {once: true}))"
    )
    for attempt, directive in {
        "document.body.append(Object.assign(document.createElement('script'), {text: '0'}))": "script-src-elem",
        "fetch('http://ossicle.test/').catch(() => {})": "connect-src",
        "document.body.setAttribute('style', 'color: red')": "style-src-attr",
    }.items():
        assert (
            visit.page.evaluate(f"() => {{ const violation = {violation}; {attempt}; return violation; }}")
            == directive
        )
    visit.expected_console.extend(["Executing inline", "Connecting to", "Applying inline", "Fetch API"])
