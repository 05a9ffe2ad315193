"""Requests that are not HTTP, or unusual HTTP; and clients that are slow, silent or disconnect."""

import json
import random

from benchmarks.security.attack_kinds import (
    CHAT,
    CLOSE,
    END,
    HOST,
    TRANSCRIPTIONS,
    AttackInputs,
    AttackKinds,
    AttackRequest,
    build_chat_body,
    build_chat_request,
    build_post,
)

KINDS = AttackKinds()
_BODY = json.dumps(build_chat_body({})).encode()
_POST = f"POST {CHAT} HTTP/1.1\r\nContent-Type: application/json\r\n".encode()
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n"
_HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n"
_ENDPOINTS = (CHAT, TRANSCRIPTIONS, "/v1/models", "/", "/nowhere", "/health")


@KINDS.add("content types")
def _draw_content_types(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    value = draw.choice(
        (
            "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx",
            "json", "/",
            "text/json", "application/", ";", "a" * 5000, "application/json\tx", "multipart/form-data; boundary=x",
        )
    )  # fmt: skip
    return AttackRequest(
        sends=(build_post(_BODY, path=draw.choice((CHAT, TRANSCRIPTIONS)), content_type=value),)
    )


@KINDS.add("lying lengths")
def _draw_lengths(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    value = draw.choice(
        (
            "-1", "+5", "0x10", "1e3", "seven", "", " ", "9" * 30, str(1 << 40), "5\r\nContent-Length: 6",
            "5, 5", "1", "9999",
            f"{len(_BODY)}\r\nTransfer-Encoding: chunked", f"{len(_BODY)}\r\nTransfer-Encoding: x", f"{len(_BODY) + 1}",
        )
    )  # fmt: skip
    head = _POST + b"Content-Length: " + value.encode() + END
    return AttackRequest(sends=(head + HOST + CLOSE + END + _BODY,), may_be_dropped=True)


@KINDS.add("endless chunks")
def _draw_chunks(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    chunk = draw.choice((b"1\r\n{\r\n", b"1;" + b"x" * 900 + b"\r\n{\r\n", b"400\r\n" + b" " * 1024 + END))
    head = _CHUNKED.replace(CHAT.encode(), draw.choice(_ENDPOINTS).encode())
    return AttackRequest(
        sends=(head + HOST + END + chunk * draw.choice((10, 2000, 20_000)), inputs.waits_s),
        may_be_dropped=True,
    )


@KINDS.add("broken chunks")
def _draw_broken_chunks(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    chunk = draw.choice(
        (b"-1\r\n", b"zz\r\nx\r\n", b"ffffffffffffffffffff\r\nx", b"3\r\nabcdef\r\n", b"\r\n\r\n", b"5")
    )
    return AttackRequest(sends=(_CHUNKED + HOST + END + chunk + b"0\r\n\r\n",), may_be_dropped=True)


def _repeat_slowly(drop: bytes, inputs: AttackInputs) -> list[bytes | float]:
    return [each for _ in range(8) for each in (drop, inputs.waits_s / 4)]


@KINDS.add("slow headers", max_requests=24)
def _draw_slow_headers(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    head = _POST + b"X-Slow: "
    first = draw.choice((b"", head, _HEALTH + END + head, build_chat_request(more=b"", max_tokens=1) + head))
    return AttackRequest(
        sends=(first, *_repeat_slowly(b"x", inputs)), may_be_answered=True, may_be_dropped=True
    )


@KINDS.add("slow bodies", max_requests=24)
def _draw_slow_bodies(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    head = _POST.replace(CHAT.encode(), draw.choice(_ENDPOINTS).encode())
    head = head.replace(
        b"application/json", draw.choice((b"application/json", b"x/y", b"multipart/form-data; boundary=x"))
    )
    return AttackRequest(
        sends=(head + b"Content-Length: 999\r\n" + HOST + END, *_repeat_slowly(b" ", inputs)),
        may_be_dropped=True,
    )


@KINDS.add("silent connections", max_requests=60)
def _draw_silent_connection(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    return AttackRequest(
        sends=(draw.choice((b"", b"G", b"\r\n", b"POST")), 1.5 * inputs.waits_s), may_be_dropped=True
    )


@KINDS.add("half-closed sockets")
def _draw_half_closed(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    request = build_chat_request(max_tokens=draw.choice((1, 200)), stream=draw.random() < 0.5)
    cut = draw.choice((len(request), len(request) - 5, 30, 0))
    return AttackRequest(
        sends=(request[:cut],), then="half-closes", may_be_answered=True, may_be_dropped=True
    )


@KINDS.add("pipelined requests")
def _draw_pipelined(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    request = draw.choice((build_chat_request(more=b"", max_tokens=1), _HEALTH + END)) * draw.choice((2, 20))
    last = draw.choice(
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"nonsense\r\n\r\n")
    )
    return AttackRequest(sends=(request + last,), may_be_answered=True)


@KINDS.add("old HTTP")
def _draw_old_http(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    stream = draw.random() < 0.5
    request = draw.choice(
        (
            build_chat_request(max_tokens=2, stream=stream).replace(b"HTTP/1.1", b"HTTP/1.0"),
            b"GET /health HTTP/1.0\r\n\r\n",
            b"GET /health\r\n\r\n", b"GET /health HTTP/0.9\r\n\r\n", b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        )
    )  # fmt: skip
    return AttackRequest(sends=(request,), may_be_answered=True)


@KINDS.add("other protocols")
def _draw_protocols(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    said = draw.choice(
        (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
            bytes.fromhex("16030100c8010000c40303") + draw.randbytes(190),
            b"SSH-2.0-OpenSSH_9\r\n", b"\x05\x01\0", b"*1\r\n$4\r\nPING\r\n", b"EHLO x\r\n", b"\0" * 500, b"JRMI\0\2K",
            draw.randbytes(3000) + b"\r\n\r\n", b"\r\n" * 20_000, b"GET\r\n\r\n", b"\x00\x00\x00\x85\xffSMB",
        )
    )  # fmt: skip
    return AttackRequest(sends=(said,), then="half-closes", may_be_dropped=True)


@KINDS.add("paths")
def _draw_paths(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    path = draw.choice(
        (
            "/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd",
            "/v1/../health%00", "//health",
            "/health/", "/v1/models/", "/v1//models", f"/{inputs.marker}", f"/static/{inputs.marker}",
            "/page.html", "/%00",
            f"/{'a' * 20_000}", f"/{'%41' * 8000}", "http://elsewhere/v1/models", inputs.trap, "elsewhere:443",
            "*", "/a b",
            "/v1/models%2f", "/v1/models;x", "/V1/MODELS", "/%ff%fe", "/\x7f", "/é", "/.git/config",
            "/metrics/../health",
            CHAT, "/docs", "/openapi.json", "\\..\\..\\windows", "/v1/models#x", "file:///etc/passwd",
        )
    )  # fmt: skip
    host = draw.choice(("localhost", "[", "[::1", "a@b", "x" * 3000, "evil.example", ":::", "a b", ""))
    return AttackRequest(
        sends=(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode(),)
    )


@KINDS.add("methods")
def _draw_methods(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    method = draw.choice(
        ("PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS", "PROPFIND", "get", "X" * 3000, "G\tT", "\0")
    )
    return AttackRequest(
        sends=(
            f"{method} {draw.choice(_ENDPOINTS)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(),
        )
    )


@KINDS.add("header bombs")
def _draw_headers(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    lines = draw.choice(
        (
            b"X: " + b"x" * 200_000 + END, b"X: x\r\n" * 20_000, b"x" * 200_000 + b": x\r\n", b": x\r\n",
            b"no colon\r\n",
            b"X: a\0b\r\n", b"X: a\rb\r\n", b" folded: x\r\n", b"Host: a\r\nHost: b\r\n", b"X\xff: \xff\r\n",
            b"X : x\r\n",
            b"Range: bytes=0-" + b",0-" * 9000 + END, b"Cookie: " + b"a=b;" * 5000 + END,
        )
    )  # fmt: skip
    return AttackRequest(sends=(b"GET /nowhere HTTP/1.1\r\n" + lines + CLOSE + END,), may_be_dropped=True)


@KINDS.add("upgrades")
def _draw_upgrades(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    lines = draw.choice(
        (
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
            f"Upgrade: {'x' * 2000}\r\nConnection: Upgrade", "Expect: 100-continue", "Expect: nonsense",
        )
    )  # fmt: skip
    head = (
        f"GET {draw.choice((CHAT, '/nowhere', '/ws', '/v1/realtime'))} HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n"
    )
    return AttackRequest(
        sends=(head.encode() + draw.randbytes(50),),
        then="half-closes",
        may_be_answered=True,
        may_be_plain=True,
        may_be_dropped=True,
    )


@KINDS.add("clients that disconnect")
def _draw_disconnect(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    request = build_chat_request(stream=True, max_tokens=200, n=draw.choice((1, 4)), temperature=1.0)
    cut = draw.choice((len(request), len(request), len(request) // 2))
    return AttackRequest(
        sends=(request[:cut],), then="disconnects", may_be_answered=True, may_be_dropped=True
    )


@KINDS.add("clients that read nothing", max_requests=24)
def _draw_unread_answer(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    stream = build_chat_request(more=b"", stream=True, max_tokens=400, n=16, temperature=2.0)
    request = draw.choice(
        (stream, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 600)
    )  # more than the buffers between them take
    return AttackRequest(
        sends=(request, 1.5 * inputs.waits_s), then="reads nothing", may_be_answered=True, may_be_dropped=True
    )
