"""Every place that opens a sealed value says what for: found in the source, so a new one cannot be forgotten.

Counting itself needs no discipline: :meth:`DataKeys.open` is the only way to a plaintext, and counts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tokenfleet_client.unsealings import Purpose

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDERS: Final = (
    "bench chaos cli conformance drills embedded providers sandbox scheduler store tokenfleet workers".split()
)
FILES: Final = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    # What a file neither imports nor is given it cannot open: the sandbox has words of its own that are called open.
    if re.search(r"Vault|DataKeys|[Kk]eys|envelope|AESGCM", path.read_text(encoding="utf-8"))
)
OTHER_FLEETS: Final = {"bench/floor.py", "bench/naive.py", "bench/get_token.py"}
"""What the benchmarks measure beside ours: they have keys of their own."""
PURPOSES: Final = {f"{prefix}Purpose.{each.name}" for each in Purpose for prefix in ("", "unsealings.")}
FILE_OPENERS: Final = {"os", "io", "gzip", "zipfile"}
"""Modules whose ``open`` opens files."""
OF_OURS: Final = {"self._sealer.open": "workers/attempt.py"}
"""What opens by way of another place that is found here: workers.sealing."""


def mistakes(source: str, path: str = "x.py") -> Iterator[str]:
    """Yield every use of an ``open`` with an envelope and a place that does not name a purpose."""
    tree = ast.parse(source)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "AESGCM" and path not in OTHER_FLEETS:
            yield f"{path}:{node.lineno}: deciphers past DataKeys"
        if not isinstance(node, ast.Attribute) or node.attr != "open":
            continue
        if isinstance(node.value, ast.Name) and node.value.id in FILE_OPENERS:
            continue
        call = called.get(id(node))
        if call is None:
            yield f"{path}:{node.lineno}: {ast.unparse(node)} is handed on, and who calls it need not say what for"
            continue
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        given = len(call.args) + len(named.keys() & {"envelope", "binding", "purpose"})
        if given < 2 or OF_OURS.get(ast.unparse(node)) == path:
            # A file, a port: one thing to open.
            continue
        purpose = named.get("purpose", call.args[2] if len(call.args) > 2 else None)
        if purpose is None or ast.unparse(purpose) not in PURPOSES:
            yield f"{path}:{node.lineno}: {ast.unparse(call)} does not name its Purpose"


def test_every_opening_in_the_code_names_its_purpose() -> None:
    found = [
        mistake
        for path in FILES
        for mistake in mistakes(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert found == []


def test_the_purposes_that_the_code_names_are_the_ones_there_are() -> None:
    """None is kept for later; a reader's needs no naming."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    unused = {each.name for each in Purpose if not re.search(rf"Purpose\.{each.name}\s*\)", source)}
    assert unused == {"READ"}


@pytest.mark.parametrize(
    "source",
    [
        "vault.access.open(envelope, place)",
        "vault.refresh.open(envelope, binding=place)",
        "keys.open(envelope, place, purpose)",
        "keys.open(envelope, place, Purpose.SPYING)",
        "keys.open(envelope, binding=place, purpose='read')",
        "list(map(keys.open, envelopes, places))",
        "AESGCM(key).decrypt(nonce, body, data)",
    ],
)
def test_an_opening_without_a_purpose_is_found(source: str) -> None:
    assert len(list(mistakes(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "keys.open(envelope, place, Purpose.REFRESH)",
        "keys.open(envelope, place, purpose=Purpose.EXPORT)",
        "path.open('rb')",
        "os.open(path, flags, 0o600)",
    ],
)
def test_an_opening_with_a_purpose_and_a_file_are_left_alone(source: str) -> None:
    assert list(mistakes(source)) == []
