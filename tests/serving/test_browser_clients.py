"""What a page of another site may do, and the ids by which all clients find a request again."""

import logging
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from support.fake_engine import MODEL, serve_fake_engine
from support.realtime_client import wait_until

SITE = "http://localhost:5173"
CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve_fake_engine(origins=(SITE,)) as url:
        yield url


def send_preflight(url: str, origin: str = SITE, **headers: str) -> httpx2.Response:
    named = {f"access-control-request-{name.replace('_', '-')}": value for name, value in headers.items()}
    return httpx2.request("OPTIONS", url, headers={"origin": origin, **named})


@pytest.mark.parametrize(
    "headers",
    [
        "authorization,content-type",
        "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-retry-count",
        "openai-organization,openai-project,openai-beta",
        "x-request-id,http-referer,x-title,helicone-auth,traceparent",
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/audio/transcriptions", "/v1/models", f"/v1/models/{MODEL}"])
def test_a_preflight_may_name_any_header(url: str, path: str, headers: str) -> None:
    method = "GET" if "models" in path else "POST"
    response = send_preflight(url + path, method=method, headers=headers)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == SITE
    assert response.headers["access-control-allow-headers"] == headers


def test_a_preflight_from_a_public_page_to_this_machine(url: str) -> None:
    response = send_preflight(url + CHAT, method="POST", private_network="true")
    assert response.status_code == 200
    assert response.headers["access-control-allow-private-network"] == "true"


def test_other_origins_and_methods_are_refused(url: str) -> None:
    for origin in ("http://localhost:5174", "https://localhost:5173", "null"):
        assert send_preflight(url + CHAT, origin, method="POST").status_code == 400
    assert send_preflight(url + CHAT, method="DELETE").status_code == 400


def test_every_origin_where_all_may_call() -> None:
    with serve_fake_engine(origins=("*",)) as url:
        response = send_preflight(url + CHAT, "https://any.example", method="POST", headers="x-a")
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")


def test_a_page_can_read_errors_and_their_ids(caplog: pytest.LogCaptureFixture) -> None:
    with serve_fake_engine(RuntimeError("secret"), origins=(SITE,)) as url:
        for body, status in ((BODY, 500), ({"model": "other"}, 404)):
            response = httpx2.post(url + CHAT, json=body, headers={"origin": SITE})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == SITE
            exposed = response.headers["access-control-expose-headers"].split(", ")
            assert "x-request-id" in exposed
            assert response.headers["x-request-id"].startswith("req_")
            assert "secret" not in response.text
            if status == 500:
                assert f"request {response.headers['x-request-id']} failed" in caplog.text


# Request ids


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v1/models", "/v1/none", CHAT])
def test_every_response_has_an_id_of_its_own(url: str, path: str) -> None:
    ids = [httpx2.get(url + path).headers["x-request-id"] for _ in range(2)]
    assert len(set(ids)) == 2


def test_a_client_s_own_id_is_kept_and_the_openai_client_shows_it(url: str) -> None:
    given = "3f2a-71.b:c/d+e=f_g@h"
    assert httpx2.get(f"{url}/health", headers={"x-request-id": given}).headers["x-request-id"] == given
    client = openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
    completion = client.chat.completions.create(**BODY, extra_headers={"X-Request-ID": "mine"})  # ty: ignore
    assert completion._request_id == "mine"
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(**BODY | {"model": "other"})  # ty: ignore
    assert str(refused.value.request_id).startswith("req_")


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "é", "a;b"])
def test_an_id_that_could_break_a_log_is_replaced(url: str, given: str) -> None:
    response = httpx2.get(f"{url}/health", headers={b"x-request-id": given.encode()})
    assert response.headers["x-request-id"].startswith("req_")


def test_the_access_log_has_a_line_for_each_request(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ossicle.access")
    stream: dict[str, Any] = {**BODY, "stream": True}
    httpx2.post(f"{url}{CHAT}?key=secret", json=stream, headers={"x-request-id": "one"})
    httpx2.get(f"{url}/no%0Aline", headers={"x-request-id": "two"})
    send_preflight(url + CHAT, method="POST")
    wait_until(lambda: len(caplog.records) == 3)  # a line is written when its response has been sent
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(f"127.0.0.1 POST {CHAT} 200 ")
    assert lines[0].endswith(" ms one")
    assert lines[1].startswith("127.0.0.1 GET /no%0Aline 404 ")
    assert lines[2].startswith(f"127.0.0.1 OPTIONS {CHAT} 200 ")
    assert "secret" not in caplog.text
