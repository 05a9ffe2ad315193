"""What clients of the Realtime protocol may do wrong: each mistake is an error event, and nothing is left behind."""

import asyncio
import base64
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
from support.fake_engine import MODEL, FakeEngine
from support.realtime_client import SILENCE, Client, list_types, load_pcm, open_session, wait_until
from support.serve_app import serve_app
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from ossicle.evaluation import load_suite
from ossicle.serving import server
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.engine import ChatRequest, ChatResponse
from ossicle.serving.errors import ApiError
from ossicle.serving.metrics import Metrics
from ossicle.serving.realtime import conversation, endpoint, session
from ossicle.serving.request_body import RequestLimits

SPEECH = load_pcm(load_suite("pocket")[40])
HANDSHAKE = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class EndlessEngine(FakeEngine):
    """Answers without end, a word every few milliseconds, and counts its answers that run."""

    n_running = 0

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """Returns the answer."""

        async def build_chunks() -> AsyncIterator[dict[str, Any]]:
            self.n_running += 1
            try:
                yield {}
                while True:
                    yield ChatResponse(model=request.model).build_chunk(0, {"content": "and "}, None)
                    await asyncio.sleep(0.005)
            finally:
                self.n_running -= 1

        chunks = build_chunks()
        await anext(chunks)
        return chunks


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def url(metrics: Metrics) -> Iterator[str]:
    settings = ServerSettings(model=MODEL, max_sessions=3, limits=RequestLimits(audio_s=6.0))
    with serve_app(create_app(FakeEngine(), settings, metrics)) as address:
        yield address


@pytest.fixture
def client(url: str, metrics: Metrics) -> Iterator[Client]:
    with open_session(url) as client:
        yield client
        client.use_manual_turns()  # it goes on
    wait_until(lambda: metrics.sessions._value.get() == 0)


@pytest.fixture
def endless() -> Iterator[tuple[str, EndlessEngine]]:
    engine = EndlessEngine()
    with serve_app(create_app(engine, ServerSettings(model=MODEL), Metrics())) as url:
        yield url, engine


# Events


def nest(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[]", "is a JSON list, expected a Realtime event"),
        (nest(100_000), "nested too deeply"),
        ('{"type": NaN}', "NaN is not a JSON number"),
        ('{"type": 1' + "0" * 5_000 + "}", "cannot be read as JSON"),
        ("{}", "Missing required parameter: 'type'"),
        ('{"type": 7}', "type is 7"),
        ('{"type": "session.delete"}', "expected one of session.update"),
        ('{"type": "response.cancel", "event_id": 7}', "event_id is 7"),
        ('{"type": "response.cancel", "event_id": "' + "x" * 600 + '"}', "at most 512 characters"),
        ('{"type": "session.update"}', "session is None, expected an object"),
        ('{"type": "session.update", "session": []}', "expected an object"),
        ('{"type": "input_audio_buffer.append"}', "Missing required parameter: 'audio'"),
        ('{"type": "input_audio_buffer.append", "audio": 7}', "audio is 7"),
        ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "is not base64"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "3 bytes, expected whole 16-bit samples"),
        ('{"type": "input_audio_buffer.append", "audio": "", "more": 1}', "Unknown parameter: 'more'"),
        ('{"type": "input_audio_buffer.commit"}', "buffer only has 0.00ms of audio"),
        ('{"type": "conversation.item.create"}', "item is None"),
        ('{"type": "conversation.item.create", "item": {"type": "mcp_call"}}', "item.type is 'mcp_call'"),
        ('{"type": "conversation.item.retrieve", "item_id": "x"}', "no item with the id 'x'"),
        ('{"type": "conversation.item.delete"}', "Missing required parameter: 'item_id'"),
        ('{"type": "conversation.item.truncate", "item_id": "x", "content_index": 0}', "no item"),
        ('{"type": "response.cancel"}', "no active response"),
        ('{"type": "response.cancel", "response_id": "x"}', "no active response"),
        ('{"type": "response.create", "response": 1}', "response is 1"),
        ('{"type": "response.create", "response": {"metadata": {"a": 1}}}', "response.metadata"),
        (
            '{"type": "response.create", "response": {"input": [{"type": "item_reference", "id": "x"}]}}',
            "no item",
        ),
        ('{"type": "response.create", "response": {"output_modalities": ["audio"]}}', "answers in text"),
        (
            '{"type": "response.create", "response": {"temperature": 1}}',
            "Unknown parameter: 'response.temperature'",
        ),
        ('{"type": "\ud800"}', "expected one of"),
    ],
)
def test_a_wrong_event_is_answered_with_an_error_and_the_session_goes_on(
    client: Client, text: str, message: str
) -> None:
    client.socket.send(text.encode("utf-8", "replace"), text=True)
    event = client.receive()
    assert event["type"] == "error"
    assert message in event["error"]["message"]
    assert len(event["error"]["message"]) < 500
    assert event["error"]["type"] == "invalid_request_error"


def test_an_error_names_the_event_that_is_wrong(client: Client) -> None:
    client.send("response.cancel", event_id="mine")
    error = client.receive()["error"]
    assert (error["event_id"], error["code"]) == ("mine", "response_cancel_not_active")


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"model": "gpt-5"}, "session.model"),
        ({"type": "transcription"}, "session.type"),
        ({"output_modalities": ["audio"]}, "session.output_modalities"),
        ({"instructions": 7}, "session.instructions"),
        ({"max_output_tokens": 0}, "session.max_output_tokens"),
        ({"max_output_tokens": True}, "session.max_output_tokens"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "session.tools[0].type"),
        ({"tools": [{"type": "function"}]}, "session.tools[0].name"),
        ({"tool_choice": "some"}, "session.tool_choice"),
        ({"voice": "alloy"}, "session.voice"),
        ({"truncation": "never"}, "session.truncation"),
        ({"prompt": {"id": "p"}}, "session.prompt"),
        (
            {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16_000}}}},
            "session.audio.input.format.rate",
        ),
        ({"audio": {"input": {"format": {"type": "audio/mp3"}}}}, "session.audio.input.format.type"),
        (
            {"audio": {"input": {"noise_reduction": {"type": "near_field"}}}},
            "session.audio.input.noise_reduction",
        ),
        (
            {"audio": {"input": {"turn_detection": {"threshold": 2}}}},
            "session.audio.input.turn_detection.threshold",
        ),
        (
            {"audio": {"input": {"turn_detection": {"type": "vad"}}}},
            "session.audio.input.turn_detection.type",
        ),
        ({"audio": {"input": {"transcription": {"model": 1}}}}, "session.audio.input.transcription.model"),
        ({"audio": {"output": {"speed": 9}}}, "session.audio.output.speed"),
    ],
)
def test_a_setting_that_cannot_be_honored_changes_nothing(
    client: Client, settings: dict[str, Any], param: str
) -> None:
    client.send("session.update", session={"type": "realtime", "instructions": "be brief", **settings})
    error = client.receive()["error"]
    assert error["param"].startswith(param)
    assert client.update()["instructions"] == ""


def test_what_has_no_effect_on_text_is_taken(client: Client) -> None:
    session = client.update(
        output_modalities=["text"],
        tracing="auto",
        truncation={"type": "retention_ratio", "retention_ratio": 0.8},
        audio={
            "input": {"format": {"type": "audio/pcm", "rate": 24_000}, "noise_reduction": None},
            "output": {"voice": "marin", "speed": 1.2, "format": {"type": "audio/pcm", "rate": 24_000}},
        },
    )
    assert session["audio"]["output"] == {
        "format": {"type": "audio/pcm", "rate": 24_000},
        "speed": 1.2,
        "voice": "marin",
    }


def test_a_second_response_a_second_id_and_a_buffer_without_end_are_refused(
    endless: tuple[str, EndlessEngine],
) -> None:
    with open_session(endless[0]) as client:
        client.use_manual_turns()
        client.say("hello")
        client.send("response.create")
        client.receive_until("response.output_text.delta")
        client.send("response.create", event_id="second")
        while (event := client.receive())["type"] != "error":
            pass
        assert event["error"]["code"] == "conversation_already_has_active_response"
        client.send("response.cancel")
        done = client.receive_until("response.done")
        assert done[-1]["response"]["status"] == "cancelled"
        assert done[-1]["response"]["status_details"]["reason"] == "client_cancelled"


def test_sound_and_items_of_a_session_are_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.use_manual_turns()
    for _ in range(2):
        client.send("input_audio_buffer.append", audio=base64.b64encode(SILENCE * 31).decode())
    error = client.receive()["error"]
    assert error["code"] == "input_audio_buffer_full"
    client.send("input_audio_buffer.clear")
    client.receive_until("input_audio_buffer.cleared")
    monkeypatch.setattr(conversation, "MAX_ITEMS", 2)
    ids = [client.say("hello") for _ in range(2)]
    client.say("hello")
    assert client.receive()["item_id"] == ids[0]  # dropped
    sound = {"type": "input_audio", "audio": base64.b64encode(SILENCE * 61).decode()}
    client.send("conversation.item.create", item={"type": "message", "role": "user", "content": [sound]})
    assert "expected at most 6 s" in client.receive()["error"]["message"]
    client.send(
        "conversation.item.create", item={"id": "x", "type": "message", "role": "user", "content": []}
    )
    client.receive_until("conversation.item.deleted")
    client.send(
        "conversation.item.create", item={"id": "x", "type": "message", "role": "user", "content": []}
    )
    assert client.receive()["error"]["code"] == "item_create_duplicate_item_id"


def test_speech_without_end_becomes_a_turn(client: Client) -> None:
    client.append(SPEECH * 4)
    events = client.receive_until("response.done")
    assert "input_audio_buffer.speech_stopped" in list_types(events)


# Interruptions


def test_speech_interrupts_an_answer(endless: tuple[str, EndlessEngine]) -> None:
    url, engine = endless
    with open_session(url) as client:
        client.say("hello")
        client.send("response.create")
        client.receive_until("response.output_text.delta")
        client.append(SILENCE * 5 + SPEECH)
        events = client.receive_until("response.done")
        kinds = list_types(events)
        assert kinds[kinds.index("input_audio_buffer.speech_started") :] == [
            "input_audio_buffer.speech_started",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ]
        response = events[-1]["response"]
        assert response["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert response["output"][0]["status"] == "incomplete"
        wait_until(lambda: engine.n_running == 0)
        client.append(SILENCE * 10)
        client.receive_until("response.created")


def test_an_answer_that_must_not_be_interrupted_is_finished_first(endless: tuple[str, EndlessEngine]) -> None:
    with open_session(endless[0]) as client:
        client.update(
            audio={"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}}
        )
        client.say("hello")
        client.send("response.create")
        client.append(SILENCE * 5 + SPEECH + SILENCE * 10)
        events = client.receive_until("input_audio_buffer.committed")
        assert "response.done" not in list_types(events)
        client.send("response.cancel")
        assert "response.created" not in list_types(client.receive_until("response.done"))
        client.receive_until("response.created")  # the turn's own


# Sockets


def build_frame(event: dict[str, Any]) -> bytes:
    """Returns a frame of text whose mask is zero."""
    payload = json.dumps(event).encode()
    n = len(payload)
    length = bytes([0x80 | n]) if n < 126 else bytes([0x80 | 126]) + n.to_bytes(2, "big")
    return b"\x81" + length + bytes(4) + payload


def refuse(url: str, **options: Any) -> dict[str, Any]:
    with pytest.raises(InvalidStatus) as refused, connect(url.replace("http", "ws", 1), **options):
        pass
    response = refused.value.response
    return {"status": response.status_code, **json.loads(response.body or b"{}")["error"]}


def test_who_may_open_a_session() -> None:
    settings = ServerSettings(model=MODEL, keys=("secret",), origins=("https://friend.example",))
    with serve_app(create_app(FakeEngine(), settings, Metrics())) as url:
        path = f"{url}/v1/realtime"
        key = {"Authorization": "Bearer secret"}
        assert refuse(path)["code"] == "invalid_api_key"
        assert refuse(path, additional_headers={"Authorization": "Bearer other"})["status"] == 401
        assert refuse(path, subprotocols=["realtime", "openai-insecure-api-key.other"])["status"] == 401
        assert refuse(f"{path}?model=gpt-5", additional_headers=key)["code"] == "model_not_found"
        for origin in ("https://evil.example", "null", "http://[", f"{url}.evil.example"):
            assert refuse(path, additional_headers=key, origin=origin)["status"] == 403
        assert refuse(f"{url}/v1/models", additional_headers=key)["status"] == 404
        with open_session(url, key="secret", origin="https://friend.example"):
            pass
        with open_session(url, key="secret", origin=url):
            pass


def test_sessions_are_counted(url: str) -> None:
    with open_session(url), open_session(url), open_session(url):
        refused = refuse(f"{url}/v1/realtime")
        assert (refused["status"], refused["code"]) == (429, "queue_full")
        assert "3 sessions" in refused["message"]


def test_binary_giant_and_broken_messages(url: str, metrics: Metrics) -> None:
    with open_session(url) as client:
        client.socket.send(b"\0" * 100)
        assert "is binary" in client.receive()["error"]["message"]
        size = (server._MAX_MESSAGE_BYTES + 1).to_bytes(8)
        client.socket.socket.sendall(b"\x81\xff" + size)  # the head of a text that is too long
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
    with open_session(url) as client:
        with suppress(ConnectionClosed):
            client.socket.send("x" * (server._MAX_MESSAGE_BYTES + 1))
        with pytest.raises(ConnectionClosed):  # its code is lost where the client still writes
            client.receive()
    with open_session(url) as client:
        client.socket.socket.sendall(b"\xff" * 100)  # no frame
        with pytest.raises(ConnectionClosed):
            client.receive()
    with open_session(url) as client:
        client.socket.socket.shutdown(socket.SHUT_WR)  # half closed
        with pytest.raises(ConnectionClosed):
            client.receive()
    wait_until(lambda: metrics.sessions._value.get() == 0)


def test_refused_handshakes_and_frames_behind_the_end_are_no_errors_of_the_server(
    url: str, caplog: pytest.LogCaptureFixture, metrics: Metrics
) -> None:
    for path in ("/v1/realtime?model=other", "/v1/models", "/"):
        assert refuse(f"{url}{path}")["status"] == 404
    with open_session(url) as client:
        end = b"\x88\x82" + bytes(4) + (1000).to_bytes(2)
        client.socket.socket.sendall(end + b"\x81\x81" + bytes(4) + b"\xff")
        with pytest.raises(ConnectionClosed):
            client.receive()
    with open_session(url) as client:
        client.socket.socket.sendall(b"\x81\x81" + bytes(4) + b"\xff" + b"\x81\x81" + bytes(4) + b"\xff")
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.settimeout(60)
        raw.sendall(HANDSHAKE + b"\x81\x81" + bytes(4) + b"\xff")  # before the greeting
        while raw.recv(4_096):
            pass
    wait_until(lambda: metrics.sessions._value.get() == 0)
    noisy = ("uvicorn.error", "asyncio", "ossicle.serving")
    assert [record for record in caplog.records if record.name in noisy] == []


def test_a_client_that_does_not_read_is_held_back_and_closed(
    monkeypatch: pytest.MonkeyPatch, url: str, metrics: Metrics
) -> None:
    monkeypatch.setattr(server, "_WRITE_TIMEOUT_S", 0.5)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        raw.sendall(HANDSHAKE)
        raw.settimeout(20)
        wait_until(lambda: metrics.sessions._value.get() == 1)
        instructions = {"type": "session.update", "session": {"instructions": "x" * 60_000}}
        raw.sendall(build_frame(instructions))  # every answer is as long
        flood = build_frame({"type": "session.update", "session": {}}) * 10
        with suppress(ConnectionError):
            while True:
                raw.sendall(flood)
    wait_until(lambda: metrics.sessions._value.get() == 0)


def test_a_session_ends_when_its_time_is_up_or_nothing_comes(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    for name in ("SESSION_S", "_IDLE_S"):
        with monkeypatch.context() as patch:
            patch.setattr(endpoint, name, 0.2)
            with open_session(url) as client:
                assert client.receive()["error"]["code"] == "session_expired"
                with pytest.raises(ConnectionClosed):
                    client.receive()


def test_the_server_stops_with_sessions_open() -> None:
    with serve_app(create_app(EndlessEngine(), ServerSettings(model=MODEL), Metrics())) as url:
        started_at = time.monotonic()
        with open_session(url) as client:
            client.say("hello")
            client.send("response.create")
            client.receive_until("response.created")
            client.socket.close_timeout = 0.1
    assert time.monotonic() - started_at < 15


# Engines


def test_a_failure_of_the_engine_is_a_failed_response() -> None:
    class FailingEngine(FakeEngine):
        async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
            raise self.failure or RuntimeError("secret")

    for failure, message in (
        (ApiError("no room", status=429, code="queue_full"), "no room"),
        (None, "its log"),
    ):
        engine = FailingEngine(failure)
        with (
            serve_app(create_app(engine, ServerSettings(model=MODEL), Metrics())) as url,
            open_session(url) as client,
        ):
            client.say("hello")
            response = client.answer()
            assert response["status"] == "failed"
            assert message in response["status_details"]["error"]["message"]
            assert "secret" not in json.dumps(response)


def test_tasks_of_one_session_are_bounded(
    endless: tuple[str, EndlessEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_MAX_TASKS", 2)
    url, engine = endless
    with open_session(url) as client:
        client.say("hello")
        for _ in range(20):
            client.send("response.create", response={"conversation": "none"})
        for _ in range(200):
            client.receive()
        assert engine.n_running <= 3
    wait_until(lambda: engine.n_running == 0)
