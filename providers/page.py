"""``docs/providers.md``: what the catalogue says of each provider, for people who choose or check one.

``python -m providers.page`` writes it; a test fails when the published page is not what the definitions say. It says
what ``tokenfleet providers show`` says, shortened to what differs between providers.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from providers.describe import CONFIDENCE, doubts_of, duration_text
from providers.explanation.unconfirmed import Topic, Unconfirmed
from providers.page_section import DOUBT, GRANTS, section
from providers.registry import load_registry
from providers.spec import ProviderSpec
from tokenfleet.errors import DefinitionError

PAGE: Final = Path(__file__).parent.parent / "docs" / "providers.md"

_INTRODUCTION: Final = """\
# Providers

What Tokenfleet knows about each provider. This page is made from the definitions in
[providers/catalog](../providers/catalog); after a change, `python -m providers.page` writes it anew.
`tokenfleet providers show NAME` says all of it, with every default, on the machine that runs the fleet;
[adding-a-provider.md](adding-a-provider.md) leads to a definition of your own.

What nobody has confirmed has a **?**. No endpoint was called to write this; every definition names its source. A
confidence is about the whole definition:
"""

_TABLE: Final = """\
*Presents* is what a renewal shows to the provider; *rotates* whether an answer replaces the refresh token, and how
long the replaced one still works (*first use*: of the new access token). *Idle* and *ends* are when a grant dies:
unused, and whatever its use. An empty cell: nothing is known, or there is no such limit.
"""


def page(specs: Sequence[ProviderSpec]) -> str:
    """Return the page about ``specs``, which are in the order of their names."""
    parts = [
        _INTRODUCTION,
        "\n".join(f"- **{word}**: {meaning}." for word, meaning in CONFIDENCE.items()),
        "",
        f"## {len(specs)} providers, counted",
        "",
        *_counts(specs),
        "",
        "## All of them",
        "",
        _TABLE,
        *_table(specs),
        "",
        *(line for spec in specs for line in section(spec)),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def catalogue() -> list[ProviderSpec]:
    """Return the built-in definitions in the order of their names."""
    return [provider.spec for provider in load_registry()]


def _counts(specs: Sequence[ProviderSpec]) -> Iterator[str]:
    yield "| by | |"
    yield "|---|---|"
    for heading, words in (
        ("grant", [GRANTS[spec.refresh.grant] for spec in specs]),
        ("rotation", [_rotation_word(spec) for spec in specs]),
        ("client authentication", [spec.client.authentication for spec in specs]),
        ("confidence", [spec.confidence for spec in specs]),
        ("category", [spec.category.replace("_", " ") for spec in specs]),
    ):
        counted = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
        yield f"| {heading} | {', '.join(f'{word} {number}' for word, number in counted)} |"


def _table(specs: Iterable[ProviderSpec]) -> Iterator[str]:
    yield "| provider | presents | access token | rotates | idle | ends | confidence |"
    yield "|---|---|---|---|---|---|---|"
    for spec in specs:
        doubts = doubts_of(spec)
        life = spec.lifetimes

        def told(seconds: int | None, topic: Topic, doubts: Unconfirmed = doubts) -> str:
            return _doubtful(duration_text(seconds), doubts, topic) if seconds else ""

        cells = (
            f"[{spec.name}](#{spec.name})",
            GRANTS[spec.refresh.grant].replace(" ", "\N{NO-BREAK SPACE}"),
            "never ends" if life.access_never_expires else told(life.access_seconds, Topic.ACCESS_LIFE),
            _rotates(spec, doubts),
            told(life.refresh_idle_seconds, Topic.IDLE),
            told(life.refresh_absolute_seconds, Topic.ABSOLUTE),
            spec.confidence,
        )
        yield f"| {' | '.join(cells)} |"


def _rotation_word(spec: ProviderSpec) -> str:
    return spec.rotation.policy if spec.refresh.grant == "refresh_token" else "no refresh token"


def _rotates(spec: ProviderSpec, doubts: Unconfirmed) -> str:
    if spec.refresh.grant != "refresh_token":
        return ""
    rotation = spec.rotation
    text = _doubtful(rotation.policy, doubts, Topic.ROTATION)
    if rotation.grace_until_first_use:
        text += ", " + _doubtful("first use", doubts, Topic.GRACE)
    elif rotation.grace_seconds:
        text += ", " + _doubtful(duration_text(rotation.grace_seconds), doubts, Topic.GRACE)
    return text


def _doubtful(text: str, doubts: Unconfirmed, topic: Topic) -> str:
    return f"{text} {DOUBT}" if doubts.covers(frozenset({topic})) else text


if __name__ == "__main__":
    try:
        PAGE.write_text(page(catalogue()), "utf-8")
    except DefinitionError as error:
        sys.exit(str(error))
