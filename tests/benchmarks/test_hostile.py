"""What strangers send is refused, and nothing is left of it: the same requests and files as in benchmarks/hostile.py."""

import asyncio
import contextlib
import io
import json
import logging
import multiprocessing
import random
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
import soundfile
from support.serve_app import serve_app

import ossicle
from benchmarks.security import attack as hostile
from benchmarks.security import attack_kinds as requests
from benchmarks.security import audio_files as files
from benchmarks.security import fuzz
from benchmarks.security import raw_client as client
from ossicle.audio import truncation
from ossicle.audio.waveform import load_audio
from ossicle.ear import Ear
from ossicle.errors import AudioError, RequestError
from ossicle.serving import middleware, server
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.audio_batcher import AudioBatcher
from ossicle.serving.engine import ChatRequest, Sound
from ossicle.serving.errors import ApiError
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.request_body import RequestLimits, read_chat_request, read_json

PATIENCE_S = 0.4
"""Of the server; longer than anything takes that does not wait for its client."""


# A server, and requests of every kind


@dataclass(frozen=True)
class Victim:
    """A server, its counters, and what is sent to it."""

    port: int
    meters: Metrics
    world: Any
    trap: Any

    def outcomes(self, name: str, n: int) -> list[str | None]:
        """The faults of some requests of a kind that are sent together."""
        made = [
            hostile.KINDS[name].make(random.Random(f"{name}/{number}"), self.world) for number in range(n)
        ]

        async def send() -> list[Any]:
            return await asyncio.gather(*(client.send(each, self.port) for each in made))

        return [outcome.fault(each) for each, outcome in zip(made, asyncio.run(send()), strict=True)]

    def counted(self) -> list[Any]:
        """Requests by path and status, the server's own count."""
        (counter,) = self.meters.requests.collect()
        return [sample for sample in counter.samples if sample.name.endswith("_total")]

    def answer(self, request: bytes) -> Any:
        """To one that is none of the hostile ones."""
        outcome = asyncio.run(client.send(requests.AttackRequest(sends=(request,)), self.port))
        told = json.loads(outcome.responses[0].body)
        return {name: value for name, value in told.items() if name not in ("id", "created")}


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load("pocket/ear", device="cpu")


@pytest.fixture(scope="module")
def victim(ear: Ear, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    sounds = hostile.build_valid_files()
    marker = tmp_path_factory.mktemp("machine") / "marker.wav"
    marker.write_bytes(sounds["wav"])
    meters = Metrics()
    settings = ServerSettings(model="pocket/ear", limits=RequestLimits(body_s=PATIENCE_S))
    app = create_app(LocalEngine(ear, meters), settings, meters)
    with pytest.MonkeyPatch.context() as patch, socket.socket() as trap:
        for name in ("_REQUEST_TIMEOUT_S", "_KEEPALIVE_TIMEOUT_S", "_WRITE_TIMEOUT_S"):
            patch.setattr(server, name, PATIENCE_S)
        patch.setattr(client, "STUCK_S", 30.0)
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/question.wav"
        world = requests.AttackInputs(sounds=sounds, marker=str(marker), trap=address, waits_s=2 * PATIENCE_S)
        with serve_app(app) as url:
            port = urlsplit(url).port
            assert port is not None
            yield Victim(port, meters, world, trap)


@pytest.mark.parametrize("name", hostile.KINDS)
def test_every_kind_is_refused_and_leaves_nothing(victim: Victim, name: str) -> None:
    """Files that ask for too much are below, each by itself."""
    good = hostile.build_good_requests(victim.world.sounds)[1]
    before = victim.answer(good)
    n = 1 if hostile.KINDS[name].max_requests < 24 or "too much" in name else 4
    assert victim.outcomes(name, n) == [None] * n
    assert victim.answer(good) == before
    assert before["choices"][0]["message"]["content"]
    assert not [sample for sample in victim.counted() if sample.labels["status"][0] == "5"]
    assert victim.meters.registry.get_sample_value("ossicle_requests_active") == 0
    with pytest.raises(BlockingIOError):
        victim.trap.accept()


def test_many_at_once_are_refused_and_leave_nothing(victim: Victim) -> None:
    names = [
        name
        for name, kind in hostile.KINDS.items()
        if kind.max_requests == max(kind.max_requests for kind in hostile.KINDS.values())
    ]
    made = [hostile.KINDS[name].make(random.Random(f"all/{name}"), victim.world) for name in names]

    async def send() -> list[Any]:
        return await asyncio.gather(*(client.send(each, victim.port) for each in made))

    outcomes = asyncio.run(send())
    assert [outcome.fault(each) for each, outcome in zip(made, outcomes, strict=True)] == [None] * len(made)
    assert victim.meters.registry.get_sample_value("ossicle_requests_active") == 0


def test_who_reads_nothing_is_not_waited_for(victim: Victim) -> None:
    page = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    deaf = requests.AttackRequest(sends=(page * 600, 3 * PATIENCE_S), then="reads nothing")
    outcome = asyncio.run(client.send(deaf, victim.port))
    assert 0 < len(outcome.responses) < 600  # as many as were on their way


@pytest.mark.parametrize("charset", ["punycode", "undefined"])
def test_forms_have_no_charset(victim: Victim, charset: str) -> None:
    content_type = f"multipart/form-data; boundary={requests.BOUNDARY}; charset={charset}"
    request = requests.build_transcription_request(requests.build_form(('name="model"', b"x")), content_type)
    assert "names a charset" in victim.answer(request)["error"]["message"]


def test_who_leaves_in_the_middle_of_a_body_is_no_error_of_the_server(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "error", lambda *told, **_: errors.append(told))
    request = requests.AttackRequest(sends=(requests.build_chat_request()[:-5],), then="half-closes")
    assert asyncio.run(client.send(request, victim.port)).label == "closed"
    victim.answer(requests.build_chat_request(max_tokens=1))  # by then the other one is counted
    assert {sample.labels["status"] for sample in victim.counted() if sample.value} >= {"200", "499"}
    assert not errors


def test_slashes_lead_to_no_other_host(victim: Victim) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{victim.port}") as asking:
        answer = asking.get("/health/", headers={"host": "evil.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers


def test_bodies_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "_MAX_LARGEST_BODIES", 2)
    sizes: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sizes.append(len((await receive())["body"]))
        if len(sizes) < 3:
            await guard(scope, received, send)  # another one while this one is here

    async def received() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 80, "more_body": False}

    async def sent(message: Any) -> None: ...

    guard = middleware.BodyLimits(app, RequestLimits(body_bytes=100))
    scope = {"type": "http", "headers": []}
    with pytest.raises(ApiError, match="240 bytes") as refused:
        asyncio.run(guard(scope, received, sent))
    assert (refused.value.status, sizes, guard.n_bytes) == (429, [80, 80], 0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a": {"b": 1, "b": 2}}', r"an object has a key twice: \['b', 'b'\]"),
        (b"[" + b"[]," * 200_000 + b"0]", "more than 262144 JSON values"),
        (b"[" * 100_000, "nested too deeply"),
    ],
    ids=["twice", "wide", "deep"],
)
def test_json_that_nobody_means_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message):
        read_json(body)


def test_a_stream_that_nobody_began_to_read_ends_with_its_work(ear: Ear) -> None:
    engine = LocalEngine(ear, Metrics())
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 400,
        "n": 8,
        "temperature": 2,
    }

    async def run() -> int:
        chunks = await engine.stream(ChatRequest(body=body, is_streamed=True, include_usage=False))
        await chunks.aclose()  # ty: ignore[missing-attribute]
        await engine.close()  # after the round that runs
        engine._scheduler.step()
        return len(engine._scheduler.running)

    assert asyncio.run(run()) == 0


def test_a_prompt_beyond_the_context_by_far_is_refused_before_it_is_read(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(ear, Metrics())
    monkeypatch.setattr(ear.template, "render", None)
    body = {"model": "m", "messages": [{"role": "user", "content": "hello " * 2_000}]}

    async def run() -> None:
        try:
            await engine.complete(ChatRequest(body=body, is_streamed=False, include_usage=False))
        finally:
            await engine.close()

    with pytest.raises(RequestError, match=r"tokens, but with its answer it may have at most 512"):
        asyncio.run(run())


@pytest.mark.parametrize(("n_turns", "n_sounds"), [(1, 33), (9, 29)])
def test_sounds_are_counted(n_turns: int, n_sounds: int) -> None:
    sounds = [requests.build_audio_part(files.build_wav(b"\1\2" * 50))] * n_sounds
    body = requests.build_chat_body({"messages": [requests.build_user_message(*sounds)] * n_turns})
    with pytest.raises(
        ApiError, match=f"{n_sounds} sounds, expected at most 32 in a message and 256 in a conv"
    ):
        read_chat_request(json.dumps(body).encode(), "pocket/ear", RequestLimits())


# Sounds that wait to be heard


def sound(number: int) -> Sound:
    return Sound(samples=np.full(1600, 0.1 * number, np.float32), key=str(number))


def test_sounds_that_nobody_waits_for_are_not_heard(ear: Ear) -> None:
    hearing = AudioBatcher(ear, Metrics(), lambda: None)

    async def run() -> list[str]:
        asked = [asyncio.create_task(hearing.embed(sounds)) for sounds in ([sound(1), sound(2)], [sound(2)])]
        await asyncio.sleep(0)
        assert list(hearing.to_embed) == ["1", "2"]
        asked[0].cancel()
        await asyncio.gather(asked[0], return_exceptions=True)
        left = list(hearing.to_embed)
        hearing.step()
        assert len((await asked[1])[0])
        return left

    assert asyncio.run(run()) == ["2"]
    assert not hearing.to_embed


def test_one_that_cannot_be_heard_fails_alone(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    hearing, hear = AudioBatcher(ear, Metrics(), lambda: None), ear.hear

    def fails(sounds: list[Any]) -> Any:
        if any(samples[0] == np.float32(0.1) for samples in sounds):
            raise AudioError("it is the first one")
        return hear(sounds)

    monkeypatch.setattr(ear, "hear", fails)

    async def run() -> list[Any]:
        asked = [asyncio.create_task(hearing.embed([sound(number)])) for number in (1, 2)]
        await asyncio.sleep(0)
        hearing.step()
        return await asyncio.gather(*asked, return_exceptions=True)

    failed, heard = asyncio.run(run())
    assert isinstance(failed, AudioError)
    assert len(heard[0])


# Files


@pytest.mark.parametrize("name", files.BOMBS)
def test_files_that_ask_for_too_much_are_refused_and_get_little(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truncation, "_MAX_CHUNKS", 1 << 14)  # all the same, and sooner
    monkeypatch.setattr(fuzz, "MOST_S", float("inf"))
    monkeypatch.setattr(fuzz, "LIMITS", RequestLimits())
    assert fuzz.run_input(fuzz.FuzzInput("sound", files.BOMBS[name]())) == ("sound refused", None)


def test_sound_that_is_elsewhere_stays_there(tmp_path: Path) -> None:
    marker = tmp_path / "marker.wav"
    soundfile.write(marker, fuzz.SAMPLES, 16_000)
    for data in files.build_references(str(marker), "http://127.0.0.1:9/x.wav"):
        with pytest.raises(AudioError, match="not audio that can be read"):
            load_audio(data)


def test_eight_channels_are_heard_by_either_decoder() -> None:
    """PyAV 18.1 reads beyond a planar frame of eight channels, and the process ends."""
    file = io.BytesIO()
    soundfile.write(file, np.stack([fuzz.SAMPLES] * 8, axis=1), 48_000, format="FLAC")
    heard = load_audio(file.getvalue())
    np.testing.assert_array_equal(load_audio(files.remove_flac_length(file.getvalue())), heard)


@pytest.mark.parametrize(("rate", "n_channels"), [(999, 1), (48_000, 17), (1_000_000, 1)])
def test_sound_that_nobody_records_is_refused(rate: int, n_channels: int) -> None:
    data = files.build_wav(bytes(range(250)) * n_channels, rate=rate, n_channels=n_channels)
    with pytest.raises(
        AudioError, match=rf"{n_channels} channel\(s\) at {rate} Hz; expected at least 1000 Hz"
    ):
        load_audio(data)


@pytest.mark.parametrize("n_each", [31, 32])
def test_packets_have_some_milliseconds_each(n_each: int) -> None:
    data = files.build_mkv(files.pack_block(b"\1\2" * n_each) * 1_100)
    with contextlib.nullcontext() if n_each == 32 else pytest.raises(AudioError, match="less than 2 ms"):
        assert len(load_audio(data)) == 32 * 1_100


# The benchmark and the fuzz target themselves


def test_a_seed_gives_the_same_requests_of_every_kind(victim: Victim) -> None:
    n = len(hostile.KINDS)
    light = requests.AttackKinds(
        {name: kind for name, kind in hostile.KINDS.items() if "too much" not in name}
    )
    first, again, other = (list(light.requests(n, seed, victim.world)) for seed in (0, 0, 1))
    assert first == again != other
    assert {name for name, _ in first} == set(light)


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ([(200, b"{}")], "answered with 200"),
        ([(500, b"{}")], "answered with 500"),
        ([(400, b"no")], "400 without an error object"),
        ([(404, json.dumps(ApiError("no").body).encode()), (502, b"")], "answered with 502"),
        ([], "closed without an answer"),
    ],
)
def test_broken_promises_are_seen(answers: list[tuple[int, bytes]], fault: str) -> None:
    outcome = client.Outcome([client.RawResponse(*answer) for answer in answers], False, 0.0)
    found = outcome.find_fault(requests.AttackRequest(sends=()))
    assert found is not None
    assert fault in found


def test_what_is_left_behind_is_seen() -> None:
    warm = hostile.ProcessState(rss_mb=100, peak_mb=100, threads=7, files=9)
    end = hostile.ProcessState(rss_mb=111, peak_mb=200, threads=99, files=10)
    tallies = {"a kind": hostile.KindResult(Counter(), 0.0, ["answered with 500"])}
    found = hostile.find_broken_promises(
        tallies, warm, end, 2, "AUDIT open /etc/passwd\nWARNING: x\nTraceback (most\n"
    )
    assert len(found) == 6
    assert hostile.find_broken_promises({}, warm, warm, 0, "WARNING: x") == []


def test_damaged_inputs_are_read_or_refused() -> None:
    corpus = fuzz.Corpus()
    outcomes = [fuzz.run_input(corpus.build_input(0, number)) for number in range(400)]
    assert {fault for _, fault in outcomes} == {None}
    assert {told for told, _ in outcomes} == {"sound read", "sound refused", "json read", "json refused"}


def test_findings_are_kept_with_their_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, reader = multiprocessing.Pipe(duplex=False)
    for message in ((5, "json read", None), (6, "sound error", "KeyError: 7")):
        reader.send(message)
    reader.close()

    class Gone:
        exitcode = -11

        def join(self) -> None: ...

    hunt = fuzz.FuzzRun(3, tmp_path / "found", next=5)
    hunt._follow(pipe, Gone(), lambda: False)
    assert hunt.next == 8
    assert [line.partition(": ")[2] for line in hunt.findings] == [
        "KeyError: 7",
        "the process ended with -11",
    ]
    assert {file.name for file in hunt.folder.iterdir()} == {"3-6.json", "3-7.sound"}
    assert (hunt.folder / "3-7.sound").read_bytes() == hunt.corpus.build_input(3, 7).data
    assert fuzz.main(["--again", str(hunt.folder / "3-7.sound")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "sound refused None"
