"""A server refuses requests that try to break it, and nothing remains: those of benchmarks/security/attack.py."""

import asyncio
import json
import logging
import random
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from support.serve_app import serve_app

import ossicle
from benchmarks.security import attack, attack_kinds, raw_client
from ossicle.ear import Ear
from ossicle.serving import server
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.errors import ApiError
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics
from ossicle.serving.request_body import RequestLimits

TIMEOUT_S = 0.4
"""The server's timeout; longer than anything takes that does not wait for its client."""


@dataclass(frozen=True)
class AttackedServer:
    """A server under attack, its metrics, and the inputs of attacks."""

    port: int
    metrics: Metrics
    inputs: Any
    trap: Any

    def send_together(self, name: str, n: int) -> list[str | None]:
        """Sends n requests of a kind together; returns their faults."""
        attacks = [
            attack.KINDS[name].build(random.Random(f"{name}/{number}"), self.inputs) for number in range(n)
        ]

        async def send() -> list[Any]:
            return await asyncio.gather(*(raw_client.send(request, self.port) for request in attacks))

        return [
            outcome.find_fault(request) for request, outcome in zip(attacks, asyncio.run(send()), strict=True)
        ]

    def count_requests(self) -> list[Any]:
        """The server's count of requests by path and status."""
        (counter,) = self.metrics.requests.collect()
        return [sample for sample in counter.samples if sample.name.endswith("_total")]

    def ask(self, request: bytes) -> Any:
        """Sends a valid request; returns the body of its answer, without what differs request time."""
        outcome = asyncio.run(raw_client.send(attack_kinds.AttackRequest(sends=(request,)), self.port))
        body = json.loads(outcome.responses[0].body)
        return {name: value for name, value in body.items() if name not in ("id", "created")}


@pytest.fixture(scope="module")
def ear() -> Ear:
    return ossicle.load("pocket/ear", device="cpu")


@pytest.fixture(scope="module")
def attacked(ear: Ear, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedServer]:
    sounds = attack.build_valid_files()
    marker = tmp_path_factory.mktemp("machine") / "marker.wav"
    marker.write_bytes(sounds["wav"])
    metrics = Metrics()
    settings = ServerSettings(model="pocket/ear", limits=RequestLimits(body_s=TIMEOUT_S))
    app = create_app(LocalEngine(ear, metrics), settings, metrics)
    with pytest.MonkeyPatch.context() as patch, socket.socket() as trap:
        for name in ("_REQUEST_TIMEOUT_S", "_KEEPALIVE_TIMEOUT_S", "_WRITE_TIMEOUT_S", "_PING_S"):
            patch.setattr(server, name, TIMEOUT_S)
        patch.setattr(raw_client, "STUCK_S", 30.0)
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.setblocking(False)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/question.wav"
        inputs = attack_kinds.AttackInputs(
            sounds=sounds, marker=str(marker), trap=address, waits_s=2 * TIMEOUT_S
        )
        with serve_app(app) as url:
            port = urlsplit(url).port
            assert port is not None
            yield AttackedServer(port, metrics, inputs, trap)


@pytest.mark.parametrize("name", attack.KINDS)
def test_every_kind_is_refused_and_leaves_nothing_active(attacked: AttackedServer, name: str) -> None:
    """Files that ask for too much are in test_fuzz, each by itself."""
    good = attack.build_good_requests(attacked.inputs.sounds)[1]
    before = attacked.ask(good)
    n = 1 if attack.KINDS[name].max_requests < 24 or "too much" in name else 4
    assert attacked.send_together(name, n) == [None] * n
    assert attacked.ask(good) == before
    assert before["choices"][0]["message"]["content"]
    assert not [sample for sample in attacked.count_requests() if sample.labels["status"][0] == "5"]
    assert attacked.metrics.registry.get_sample_value("ossicle_requests_active") == 0
    with pytest.raises(BlockingIOError):
        attacked.trap.accept()


def test_many_concurrent_requests_are_refused_and_leave_nothing_active(attacked: AttackedServer) -> None:
    names = [
        name
        for name, kind in attack.KINDS.items()
        if kind.max_requests == max(kind.max_requests for kind in attack.KINDS.values())
    ]
    attacks = [attack.KINDS[name].build(random.Random(f"all/{name}"), attacked.inputs) for name in names]

    async def send() -> list[Any]:
        return await asyncio.gather(*(raw_client.send(request, attacked.port) for request in attacks))

    outcomes = asyncio.run(send())
    assert [outcome.find_fault(request) for request, outcome in zip(attacks, outcomes, strict=True)] == [
        None
    ] * len(attacks)
    assert attacked.metrics.registry.get_sample_value("ossicle_requests_active") == 0


def test_a_client_that_reads_nothing_is_disconnected(attacked: AttackedServer) -> None:
    page = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    unread = attack_kinds.AttackRequest(sends=(page * 600, 3 * TIMEOUT_S), then="reads nothing")
    outcome = asyncio.run(raw_client.send(unread, attacked.port))
    assert 0 < len(outcome.responses) < 600  # those already in the buffers


@pytest.mark.parametrize("charset", ["punycode", "undefined"])
def test_forms_with_a_charset_are_refused(attacked: AttackedServer, charset: str) -> None:
    content_type = f"multipart/form-data; boundary={attack_kinds.BOUNDARY}; charset={charset}"
    request = attack_kinds.build_transcription_request(
        attack_kinds.build_form(('name="model"', b"x")), content_type
    )
    assert "names a charset" in attacked.ask(request)["error"]["message"]


def test_a_client_that_disconnects_in_a_body_is_not_logged_as_an_error(
    attacked: AttackedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "error", lambda *args, **_: errors.append(args))
    request = attack_kinds.AttackRequest(sends=(attack_kinds.build_chat_request()[:-5],), then="half-closes")
    assert asyncio.run(raw_client.send(request, attacked.port)).label == "closed"
    attacked.ask(attack_kinds.build_chat_request(max_tokens=1))  # by then the other request is counted
    assert {sample.labels["status"] for sample in attacked.count_requests() if sample.value} >= {"200", "499"}
    assert not errors


def test_trailing_slashes_do_not_redirect_to_another_host(attacked: AttackedServer) -> None:
    with httpx2.Client(base_url=f"http://127.0.0.1:{attacked.port}") as client:
        answer = client.get("/health/", headers={"host": "evil.example"})
    assert answer.status_code == 404
    assert "location" not in answer.headers


# The benchmark itself


def test_a_seed_gives_the_same_requests_of_every_kind(attacked: AttackedServer) -> None:
    n = len(attack.KINDS)
    light = attack_kinds.AttackKinds(
        {name: kind for name, kind in attack.KINDS.items() if "too much" not in name}
    )
    first, again, other = (list(light.requests(n, seed, attacked.inputs)) for seed in (0, 0, 1))
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
def test_broken_promises_are_found(answers: list[tuple[int, bytes]], fault: str) -> None:
    outcome = raw_client.Outcome([raw_client.RawResponse(*answer) for answer in answers], False, 0.0)
    found = outcome.find_fault(attack_kinds.AttackRequest(sends=()))
    assert found is not None
    assert fault in found


def test_leaks_and_logged_errors_are_found() -> None:
    warm = attack.ProcessState(rss_mb=100, peak_mb=100, threads=7, files=9, programs=0)
    end = attack.ProcessState(rss_mb=111, peak_mb=200, threads=99, files=10, programs=2)
    kinds = {"a kind": attack.KindResult(Counter(), 0.0, ["answered with 500"])}
    result = attack.AttackResult(kinds, warm, end, 2)
    assert len(result.find_faults("AUDIT open /etc/passwd\nWARNING: x\nTraceback (most\n")) == 7
    assert attack.AttackResult({}, warm, warm, 0).find_faults("WARNING: x") == []
