"""The page at /, as people meet it: the real server with the pocket ear, a browser whose microphone asks a question."""

import re
import shutil
from collections.abc import Callable, Generator, Iterator
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

import ossicle
from ossicle.audio.waveform import SAMPLE_RATE, load_audio
from ossicle.ear import Ear
from ossicle.evaluation import Item, load_suite
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.engine import ChatRequest, Sound
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.server import bind_socket

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")

MODEL = "pocket/ear"
KEY = "open sesame"
PATIENCE_MS = 60_000  # of a browser beside other tests
BEFORE_S, AFTER_S = 0.2, 30.0  # silence around the question
ASKED = re.compile(r"0:(0[3-9]|[1-5])|[1-9]:")  # the page's clock when the question is over: 0:03 or later
MAX_TAKES = 3  # a machine that is busy elsewhere records with gaps, and who is misheard says it again
REFUSED = "Failed to load resource"  # how the console tells of a status that is none of success
CHAT, MODELS = "**/v1/chat/completions", "**/v1/models"


class Witness(LocalEngine):
    """The engine, and what it was asked."""

    asked: list[ChatRequest]

    async def stream(self, request: ChatRequest) -> Any:
        self.asked.append(request)
        return await super().stream(request)


@dataclass(frozen=True)
class Site:
    """A server that runs."""

    url: str
    engine: Witness

    @property
    def last_messages(self) -> list[dict[str, Any]]:
        """The conversation that was answered last, as an ear takes it."""
        return [
            {**message, "content": [_plain(part) for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in self.engine.asked[-1].body["messages"]
        ]


def _plain(part: dict[str, Any]) -> dict[str, Any]:
    sound = part.get("audio")
    return {"type": "audio", "audio": sound.samples} if isinstance(sound, Sound) else part


@dataclass(frozen=True)
class Visit:
    """A page that is open, and all that it did beside what can be seen."""

    page: Page
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """What may be in the console."""

    @property
    def talk(self) -> Locator:
        return self.page.get_by_role("button", name="Talk")

    @property
    def hint(self) -> Locator:
        return self.page.locator("#hint")

    def answer(self, number: int = 0, name: str = "By ear") -> Locator:
        """The article of a turn's answer."""
        heading = self.page.get_by_role("heading", name=name)
        return self.page.get_by_role("article").filter(has=heading).nth(number)

    def send_file(self, path: Path) -> None:
        self.page.get_by_label("Sound file").set_input_files(path)

    def send_text(self, text: str) -> None:
        self.page.get_by_label("Text beside the voice").fill(text)
        self.page.get_by_role("button", name="Send text").click()


@contextmanager
def served(ear: Ear, *, keys: tuple[str, ...] = ()) -> Generator[Site]:
    meters = Metrics()
    engine = Witness(ear, meters)
    engine.asked = []
    app = create_app(engine, ServerSettings(model=MODEL, keys=keys), meters)
    place = bind_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    try:
        yield Site(f"http://127.0.0.1:{place.getsockname()[1]}/", engine)
    finally:
        server.should_exit = True
        thread.join()
        place.close()


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load(MODEL)


@pytest.fixture(scope="module")
def site(ear: Ear) -> Iterator[Site]:
    with served(ear) as site:
        yield site


@pytest.fixture(scope="module")
def items() -> dict[str, Item]:
    return {item.id: item for item in load_suite("pocket")}


@pytest.fixture(scope="module")
def question(items: dict[str, Item]) -> Item:
    """What the microphone hears."""
    return items["0067"]


@pytest.fixture(scope="module")
def files(items: dict[str, Item], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound files to choose from, and one that is none."""
    folder = tmp_path_factory.mktemp("sounds")
    paths = {}
    for number in ("0057", "0002"):
        item = items[number]
        paths[item.text] = folder / f"{item.text}.wav"
        soundfile.write(paths[item.text], load_audio(item.audio), SAMPLE_RATE, subtype="PCM_16")
    paths["no sound"] = folder / "no sound.wav"
    paths["no sound"].write_text("this is no sound")
    return paths


@pytest.fixture(scope="module")
def browser(question: Item, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = tmp_path_factory.mktemp("microphone") / "question.wav"
    before, after = (np.zeros(round(s * SAMPLE_RATE), np.float32) for s in (BEFORE_S, AFTER_S))
    heard = np.concatenate([before, load_audio(question.audio), after])
    soundfile.write(path, heard, SAMPLE_RATE, subtype="PCM_16")
    expect.set_options(timeout=PATIENCE_MS)
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


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Opens pages; afterwards none of them may have called another place, or have anything in its console."""
    visits: list[tuple[str, Visit]] = []

    def open_page(
        url: str, *, microphone: bool = True, width: int = 900, script: str = "", **options: Any
    ) -> Visit:
        permissions = ["microphone"] if microphone else []
        context = browser.new_context(
            permissions=permissions, viewport={"width": width, "height": 760}, **options
        )
        visit = Visit(context.new_page())
        visits.append((url, visit))
        visit.page.set_default_timeout(PATIENCE_MS)
        visit.page.add_init_script(script)
        visit.page.on("console", lambda message: visit.console.append(message.text))
        visit.page.on("pageerror", lambda error: visit.console.append(str(error)))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.goto(url)
        return visit

    yield open_page
    for url, visit in visits:
        visit.page.context.close()
        assert [told for told in visit.console if not told.startswith(tuple(visit.expected))] == []
        assert [called for called in visit.requests if not called.startswith((url, "blob:", "data:"))] == []


def given(site: Site, ear: Ear, answer: Locator) -> str:
    """The answer that the page shows, once it is complete; it is what the ear says to what it was sent."""
    expect(answer).to_have_attribute("data-state", "done")
    shown = answer.locator("[data-part=text]").inner_text()
    assert shown == ear.chat(site.last_messages)
    return shown


def is_answered_rightly(site: Site, ear: Ear, seen: Visit, right: str, speak: Callable[[], None]) -> bool:
    for take in range(MAX_TAKES):
        if take:
            seen.page.get_by_role("button", name="New conversation").click()
        speak()
        if given(site, ear, seen.answer()) == right:
            return True
    return False


# Voice


def test_a_click_begins_and_another_one_sends(
    visit: Callable[..., Visit], site: Site, ear: Ear, question: Item
) -> None:
    assert question.answer
    seen = visit(site.url)
    expect(seen.page).to_have_title(f"ossicle · {MODEL}")
    levels: list[float] = []

    def speak() -> None:
        seen.page.get_by_label("Text beside the voice").fill("Answer in capital letters.")
        seen.talk.click()
        expect(seen.talk).to_have_attribute("aria-pressed", "true")
        expect(seen.page.locator("#time")).to_have_text(ASKED)
        expect(seen.page.locator("#levels")).to_be_visible()
        levels[:] = seen.page.evaluate("recording.levels")
        seen.talk.click()

    assert is_answered_rightly(site, ear, seen, question.answer.upper(), speak)
    assert min(levels) < 0.1
    assert max(levels) > 0.5
    assert [part["type"] for part in site.last_messages[-1]["content"]] == ["audio", "text"]
    expect(seen.talk).to_have_attribute("aria-pressed", "false")
    expect(seen.page.get_by_label("Text beside the voice")).to_be_empty()
    expect(seen.answer()).to_contain_text(re.compile(r"First token after \d"))
    expect(seen.answer()).to_contain_text(re.compile(r"\d+ tokens in, \d+ of them audio; \d+ out"))
    expect(seen.page.get_by_role("status")).to_have_text(f"By ear: {question.answer.upper()}")
    played_s = seen.page.get_by_label("What you said in turn 1").evaluate("sound => sound.duration")
    assert played_s > len(load_audio(question.audio)) / SAMPLE_RATE


def test_a_hold_records_until_it_is_released(
    visit: Callable[..., Visit], site: Site, ear: Ear, question: Item, files: dict[str, Path]
) -> None:
    assert question.answer
    seen = visit(site.url)

    def speak() -> None:
        seen.talk.hover()
        seen.page.mouse.down()
        expect(seen.page.locator("#time")).to_have_text(ASKED)
        seen.page.mouse.up()

    assert is_answered_rightly(site, ear, seen, question.answer, speak)
    first = site.last_messages
    seen.send_file(files["what does the cow say"])
    assert given(site, ear, seen.answer(1)) == "The cow says moo."
    again, reply, _ = site.last_messages
    assert np.array_equal(again["content"][0]["audio"], first[0]["content"][0]["audio"])
    assert reply == {"role": "assistant", "content": question.answer}


def test_text_that_is_sent_meanwhile_goes_with_the_voice(
    visit: Callable[..., Visit], site: Site, ear: Ear
) -> None:
    seen = visit(site.url)
    seen.talk.click()
    expect(seen.page.locator("#time")).to_have_text(ASKED)
    seen.send_text("Answer in capital letters.")
    given(site, ear, seen.answer())
    assert [part["type"] for part in site.last_messages[-1]["content"]] == ["audio", "text"]
    expect(seen.talk).to_have_attribute("aria-pressed", "false")


def test_keys_alone_are_enough(visit: Callable[..., Visit], site: Site, ear: Ear) -> None:
    seen = visit(site.url)

    def tab_to(target: Locator) -> None:
        for _ in range(40):
            seen.page.keyboard.press("Tab")
            if target.evaluate("element => element === document.activeElement"):
                return
        pytest.fail(f"Tab does not lead to {target}")

    tab_to(seen.talk)
    seen.page.keyboard.press("Enter")
    expect(seen.hint).to_have_text("Press again to send.")
    seen.page.keyboard.press("Escape")
    expect(seen.hint).to_have_text("Hold to talk, or click to start and stop.")
    seen.page.keyboard.down(" ")
    expect(seen.hint).to_have_text("Release to send.")
    expect(seen.page.locator("#time")).to_have_text(ASKED)
    seen.page.keyboard.up(" ")
    given(site, ear, seen.answer())
    tab_to(seen.page.get_by_role("button", name="What would the cascade say?"))
    seen.page.keyboard.press("Enter")
    expect(seen.answer(name="Cascade")).to_have_attribute("data-state", "done")
    tab_to(seen.page.get_by_label("Text beside the voice"))
    seen.page.keyboard.type("What is the plural of leaf?")
    seen.page.keyboard.press("Enter")
    assert given(site, ear, seen.answer(name="As read")) == "The plural of leaf is leaves."
    tab_to(seen.page.get_by_label("Sound file"))
    tab_to(seen.page.get_by_role("button", name="New conversation"))  # Tab goes round


def test_a_refused_microphone_is_told(visit: Callable[..., Visit], site: Site) -> None:
    seen = visit(site.url, microphone=False)
    seen.talk.click()
    expect(seen.hint).to_contain_text("The microphone was refused. Allow it for this page")
    expect(seen.page.get_by_role("status")).to_contain_text("The microphone was refused.")
    expect(seen.talk).to_have_attribute("aria-pressed", "false")


def test_an_absent_microphone_is_told(visit: Callable[..., Visit], site: Site) -> None:
    script = (
        "MediaDevices.prototype.getUserMedia = async () => { throw new DOMException('', 'NotFoundError'); };"
    )
    seen = visit(site.url, script=script)
    seen.talk.click()
    expect(seen.hint).to_contain_text("No microphone was found. Connect one")


def test_a_place_without_microphone_is_told(visit: Callable[..., Visit], site: Site) -> None:
    seen = visit(site.url.replace("127.0.0.1", "ossicle.test"))
    expect(seen.talk).to_be_disabled()
    expect(seen.hint).to_contain_text("pages at localhost or over https")


# Turns


def test_the_cascade_answers_on_demand(
    visit: Callable[..., Visit], site: Site, ear: Ear, files: dict[str, Path]
) -> None:
    seen = visit(site.url)
    seen.page.get_by_text("System prompt").click()
    seen.page.get_by_role("textbox", name="System prompt").fill("You are a helpful assistant.")
    cow, outside = files["what does the cow say"], files["what is the opposite of outside"]
    seen.send_file(cow)
    given(site, ear, seen.answer())
    seen.send_file(outside)
    given(site, ear, seen.answer(1))
    system, _, reply, _ = site.last_messages
    seen.page.get_by_role("button", name="What would the cascade say?").nth(1).click()
    cascade = seen.answer(name="Cascade")
    given(site, ear, cascade)
    wrote = ear.transcribe([cow, outside])
    turns = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in wrote]
    assert site.last_messages == [system, turns[0], reply, turns[1]]
    expect(cascade).to_contain_text(f"It wrote “{wrote[1]}”")
    expect(cascade).to_contain_text(re.compile(r"First token after \d"))
    assert sum(url.endswith("/transcriptions") for url in seen.requests) == 2


def test_text_is_answered_too(visit: Callable[..., Visit], site: Site, ear: Ear) -> None:
    seen = visit(site.url)
    expect(seen.page.get_by_role("button", name="Send text")).to_be_disabled()
    seen.send_text("What is the plural of leaf?")
    assert given(site, ear, seen.answer(name="As read")) == "The plural of leaf is leaves."
    expect(seen.page.get_by_role("button", name="What would the cascade say?")).to_be_hidden()


def test_a_new_conversation_remembers_nothing(
    visit: Callable[..., Visit], site: Site, ear: Ear, files: dict[str, Path]
) -> None:
    seen = visit(site.url)
    seen.send_file(files["what does the cow say"])
    given(site, ear, seen.answer())
    sound = seen.page.get_by_label("What you said in turn 1").get_attribute("src")
    plays = (
        "url => new Promise(tell => Object.assign(new Audio(url),"
        " {onloadedmetadata: () => tell(true), onerror: () => tell(false)}))"
    )
    assert seen.page.evaluate(plays, sound)
    seen.page.get_by_role("button", name="New conversation").click()
    expect(seen.page.get_by_role("article")).to_have_count(0)
    assert not seen.page.evaluate(plays, sound)
    seen.expected.append(REFUSED)
    seen.send_text("What is the plural of leaf?")
    given(site, ear, seen.answer(name="As read"))
    assert len(site.last_messages) == 1


# What goes wrong


def test_what_the_server_says_stands_in_the_turn(
    visit: Callable[..., Visit], site: Site, ear: Ear, files: dict[str, Path]
) -> None:
    seen = visit(site.url)
    seen.expected.append(REFUSED)
    seen.send_file(files["no sound"])
    expect(seen.page.get_by_role("alert")).to_contain_text("The server refused this")
    expect(seen.page.get_by_role("alert")).to_contain_text("is not audio that can be read")
    seen.send_file(files["what does the cow say"])
    assert given(site, ear, seen.answer(1)) == "The cow says moo."
    assert len(site.last_messages) == 1


def test_a_busy_server_is_asked_again(visit: Callable[..., Visit], site: Site, ear: Ear) -> None:
    seen = visit(site.url)
    seen.expected.append(REFUSED)
    busy = {
        "error": {"message": "128 requests wait", "type": "rate_limit_error", "param": None, "code": None}
    }
    seen.page.route(CHAT, lambda route: route.fulfill(status=429, json=busy), times=1)
    seen.send_text("What is the plural of leaf?")
    expect(seen.page.get_by_role("alert")).to_have_text(
        "The server is busy: try again in a moment128 requests wait"
    )
    seen.page.get_by_role("button", name="Try again").click()
    assert given(site, ear, seen.answer(name="As read")) == "The plural of leaf is leaves."
    expect(seen.page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (None, "cannot be reached"),
        ('data: {"choices": [{"delta": {"content": "The"}}]}\n\n', "broke off before its end"),
        ('data: {"error": {"message": "the LLM is gone"}}\n\n', "the LLM is gone"),
        ("data: {\n\n", "could not be read"),
    ],
)
def test_an_answer_that_breaks_off_is_told(
    visit: Callable[..., Visit], site: Site, body: str | None, told: str
) -> None:
    seen = visit(site.url)
    seen.expected.append(REFUSED)
    stream = {"content_type": "text/event-stream", "body": body}
    seen.page.route(CHAT, lambda route: route.abort() if body is None else route.fulfill(**stream))
    seen.send_text("What is the plural of leaf?")
    expect(seen.page.get_by_role("alert")).to_contain_text(told)


def test_an_answer_can_be_stopped(visit: Callable[..., Visit], site: Site, ear: Ear) -> None:
    seen = visit(site.url)
    seen.page.route(CHAT, lambda route: None, times=1)  # which is never answered
    seen.send_text("What is the plural of leaf?")
    seen.page.get_by_role("button", name="Stop").click()
    expect(seen.answer(name="As read")).to_have_attribute("data-state", "stopped")
    seen.page.get_by_role("button", name="Try again").click()
    given(site, ear, seen.answer(name="As read"))
    assert len(site.last_messages) == 1


def test_a_key_is_asked_for_until_it_fits(visit: Callable[..., Visit], ear: Ear) -> None:
    with served(ear, keys=(KEY,)) as site:
        seen = visit(site.url)
        seen.expected.append(REFUSED)
        dialog = seen.page.get_by_role("dialog", name="This server asks for a key")
        for key in ("a guess", KEY):
            expect(dialog).to_contain_text("the API key is missing or unknown")
            dialog.get_by_label("API key").fill(key)
            with seen.page.expect_response(MODELS):
                dialog.get_by_role("button", name="Use this key").click()
        expect(seen.page).to_have_title(f"ossicle · {MODEL}")
        seen.page.reload()
        expect(seen.page).to_have_title(f"ossicle · {MODEL}")
        seen.send_text("What is the plural of leaf?")
        given(site, ear, seen.answer(name="As read"))
        assert not any("sesame" in url for url in seen.requests)
        seen.page.evaluate("sessionStorage.clear()")
        seen.send_text("What is the plural of dog?")
        dialog.get_by_role("button", name="Cancel").click()
        expect(seen.page.get_by_role("alert")).to_contain_text("A key is needed")
        seen.page.context.close()


# How it looks, and what it may do


def test_it_fits_narrow_screens(visit: Callable[..., Visit], site: Site, files: dict[str, Path]) -> None:
    seen = visit(site.url, width=320)
    seen.expected.append(REFUSED)
    seen.send_file(files["what does the cow say"])
    seen.page.get_by_role("button", name="What would the cascade say?").click()
    expect(seen.answer(name="Cascade")).to_have_attribute("data-state", "done")
    seen.send_text("a" * 200)
    seen.send_file(files["no sound"])
    expect(seen.page.get_by_role("alert")).to_be_visible()
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_what_is_behind_them(
    visit: Callable[..., Visit], site: Site, scheme: str
) -> None:
    seen = visit(site.url, color_scheme=scheme)
    read = "getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
    for front, back in [
        *(("ink", back) for back in ("page", "card", "wash", "wrong-wash")),
        *(("soft", back) for back in ("page", "card")),
        ("on-accent", "accent"),
        ("wrong", "card"),
        ("wrong", "wrong-wash"),
    ]:
        lighter, darker = sorted(
            (luminance(seen.page.evaluate(f"name => {read}", name)) for name in (front, back)), reverse=True
        )
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (front, back)


def luminance(colour: str) -> float:
    """Of #rrggbb, as WCAG 2 has it."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_it_may_run_its_own_script_only(visit: Callable[..., Visit], site: Site) -> None:
    seen = visit(site.url)
    told = (
        "new Promise(tell => document.addEventListener("
        "'securitypolicyviolation', event => tell(event.effectiveDirective), {once: true}))"
    )
    for attempt, directive in {
        "document.body.append(Object.assign(document.createElement('script'), {text: '0'}))": "script-src-elem",
        "fetch('http://ossicle.test/').catch(() => {})": "connect-src",
        "document.body.setAttribute('style', 'color: red')": "style-src-attr",
    }.items():
        assert seen.page.evaluate(f"() => {{ const told = {told}; {attempt}; return told; }}") == directive
    seen.expected.extend(["Executing inline", "Connecting to", "Applying inline", "Fetch API"])
