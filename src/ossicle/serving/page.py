"""The web page at /, with a content security policy that allows its own scripts and style and this server alone."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response


async def get_page(request: Request) -> Response:
    """GET /."""
    html, policy = _load_page()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(html, media_type="text/html", headers=headers)


async def get_microphone(request: Request) -> Response:
    """GET /microphone.js: what browsers run beside the page and take from an address alone."""
    script = (Path(__file__).parent / "microphone.js").read_text(encoding="utf-8")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return Response(script, media_type="text/javascript", headers=headers)


@cache
def _load_page() -> tuple[str, str]:
    """Returns the HTML and its content security policy."""
    html = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    script, style = (_hash_element(tag, html) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src '{script}' 'self'; style-src '{style}'; connect-src 'self'; media-src blob:;"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash_element(tag: str, html: str) -> str:
    """Returns the hash of an inline element, as a content security policy has it."""
    match = re.search(f"<{tag}[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    assert match, f"the page has a <{tag}>"
    return "sha256-" + base64.b64encode(hashlib.sha256(match[1].encode()).digest()).decode()
