"""The sessions of the soak: every turn is answered or interrupted, and the same session is told the same."""

import asyncio
from collections.abc import Iterator

import pytest
from support.serve_app import serve_app

import ossicle
from benchmarks.serving.sessions import SessionFailed, SessionResult, hold_session
from ossicle.serving.app import ServerSettings, create_app
from ossicle.serving.local_engine import LocalEngine
from ossicle.serving.metrics import Metrics


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    engine = LocalEngine(ossicle.load("pocket/ear", device="cpu"), Metrics())
    with serve_app(create_app(engine, ServerSettings(model="pocket/ear"), Metrics())) as url:
        yield url


def test_sessions_in_company_are_those_alone(url: str) -> None:
    async def hold_all() -> list[SessionResult]:
        return await asyncio.gather(*(hold_session(url, number) for number in range(6)))

    together = asyncio.run(hold_all())
    assert sum(result.n_interrupted for result in together) > 0
    for number, result in enumerate(together):
        assert len(result.answers) == len(result.transcripts) >= 1
        if not result.n_interrupted:
            assert asyncio.run(hold_session(url, number)) == result


def test_a_server_that_is_gone_fails() -> None:
    with pytest.raises(SessionFailed, match="Error"):
        asyncio.run(hold_session("http://127.0.0.1:9", 0))
