"""Small definitions for tests: what a definition must have, and what a test adds to it."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from providers.contradictions import contradictions
from providers.registry import Provider
from providers.spec import ProviderSpec

BASE = """
name = "example"
display_name = "Example"
category = "crm"
documentation = "https://docs.example.com/oauth"
confidence = "low"
checked = 2026-01-31
notes = "Made up for a test."
"""

PARTS = {
    "client": 'authentication = "client_secret_post"',
    "refresh": 'endpoint = "https://auth.example.com/token"',
    "rotation": 'policy = "sometimes"',
}


def toml(extra: str = "", **parts: str) -> str:
    """Return a definition with ``extra`` at its end; ``parts`` replace the required tables.

    Where another grant than a refresh token's is asked for, nothing rotates unless the test says so.
    """
    if re.search(r'\bgrant = "(?!refresh_token")', parts.get("refresh", "")):
        parts = {"rotation": 'policy = "never"', **parts}
    tables = "".join(f"\n[{name}]\n{text}\n" for name, text in {**PARTS, **parts}.items())
    return f"{BASE}{tables}\n{extra}\n"


def provider(extra: str = "", *, allow_http: bool = False, **parts: str) -> Provider:
    """Return the compiled provider of :func:`toml`."""
    document: dict[str, Any] = tomllib.loads(toml(extra, **parts))
    spec = ProviderSpec.model_validate(document)
    assert contradictions(spec, allow_http=allow_http) == []
    return Provider.compile(spec, origin="example.toml", allow_http=allow_http)
