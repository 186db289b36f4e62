"""The corpus of token responses in ``tests/corpus/answers``: one TOML file for each, with what it has to mean.

``body`` is text, or a list of parts: text, ``{text, times}``, ``{hex, times}``. ``charset`` encodes the text,
``encoding`` packs the whole (gzip, deflate) and says so in a header. ``provider`` names the definition that reads it,
a plain one unless given; ``definition`` adds ``extra`` tables to the plain one, or replaces its tables by name.
Under ``expect`` stand the outcome and whatever of it matters; ``outage = true`` where the provider's circuit counts
it, which nothing else may.
"""

from __future__ import annotations

import gzip
import tomllib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    RequestRejected,
    Throttled,
    Unavailable,
    Undescribed,
)

FOLDER = Path(__file__).parents[1] / "corpus" / "answers"

OUTCOMES: Mapping[str, type[Outcome]] = {
    "refreshed": Refreshed,
    "grant_rejected": GrantRejected,
    "client_rejected": ClientRejected,
    "request_rejected": RequestRejected,
    "throttled": Throttled,
    "unavailable": Unavailable,
    "unknown": OutcomeUnknown,
    "undescribed": Undescribed,
}

_PACKERS = {"gzip": lambda body: gzip.compress(body, 1), "deflate": lambda body: zlib.compress(body, 1)}


@dataclass(frozen=True, slots=True)
class Case:
    """One answer as it comes over the wire, and what it has to mean."""

    name: str
    about: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    provider: str | None
    definition: Mapping[str, str] | None
    expect: Mapping[str, Any]

    @property
    def outcome(self) -> type[Outcome]:
        return OUTCOMES[self.expect["outcome"]]

    def on_the_wire(self) -> bytes:
        """Return the whole HTTP response."""
        lines = [f"HTTP/1.1 {self.status} Whatever", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@cache
def cases() -> tuple[Case, ...]:
    """Return every case, by name."""
    return tuple(_read(file) for file in sorted(FOLDER.glob("*.toml")))


def _read(file: Path) -> Case:
    document = tomllib.loads(file.read_text(encoding="utf-8"))
    headers: dict[str, str] = document.get("headers", {})
    parts = document["body"] if isinstance(document["body"], list) else [document["body"]]
    body = b"".join(_part(part, document.get("charset", "utf-8")) for part in parts)
    if encoding := document.get("encoding"):
        body, headers = _PACKERS[encoding](body), headers | {"content-encoding": encoding}
    return Case(
        name=file.stem,
        about=document["about"],
        status=document["status"],
        headers=headers,
        body=body,
        provider=document.get("provider"),
        definition=document.get("definition"),
        expect=document["expect"],
    )


def _part(part: str | dict[str, Any], charset: str) -> bytes:
    if isinstance(part, str):
        return part.encode(charset)
    data = bytes.fromhex(part["hex"]) if "hex" in part else str(part["text"]).encode(charset)
    return data * int(part.get("times", 1))
