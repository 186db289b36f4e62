"""The verdict as people read it: one table of at most 100 columns, and the reasons under it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from chaos.verdict import Row, Verdict, counted

TITLE_WIDTH: Final = 44
_HEADS: Final = (
    ("", "times", "refreshes", "presented", "", "lost by", "false", "under"),
    ("fault", "done", "meanwhile", "twice", "lost", "physics", "re-auths", "30 s"),
)
_WIDTHS: Final = (6, 10, 10, 5, 8, 9, 6)
_COLUMNS: Final = 100


def lines(verdict: Verdict) -> Iterator[str]:
    """Yield the lines to print."""
    for head in _HEADS:
        yield _line(head[0], head[1:])
    yield "-" * (TITLE_WIDTH + sum(_WIDTHS))
    for row in verdict.rows:
        yield _row(row)
    yield "-" * (TITLE_WIDTH + sum(_WIDTHS))
    yield _row(verdict.total)
    yield ""
    if verdict.held:
        yield from textwrap.wrap(_held(verdict.total.lost_by_physics), _COLUMNS)
    for problem in verdict.problems:
        yield f"FAILED: {problem}."
    for story in verdict.stories:
        yield f"  {story}"


def _held(lost_by_physics: int) -> str:
    held = (
        "Held: nothing was presented twice, nothing that anybody had kept was lost, "
        "nobody was bothered for nothing."
    )
    if not lost_by_physics:
        return held
    died = counted(
        lost_by_physics,
        "answer died with its process or on the wire before anybody could keep it, and its customer had",
        "answers died with their process or on the wire before anybody could keep them, and their customers had",
    )
    return f"{held} {died} to sign in again: no software can prevent that, and each was counted."


def _row(row: Row) -> str:
    bad = row.presented_twice or row.lost or row.false_reauths
    cells = (
        f"{row.injected:,}",
        f"{row.refreshes:,}",
        f"{row.presented_twice:,}",
        f"{row.lost:,}",
        f"{row.lost_by_physics:,}",
        f"{row.false_reauths:,}",
        f"{row.under_promise_seconds:.0f} s",
    )
    return _line(row.title, cells) + (" !" if bad else "")


def _line(title: str, cells: tuple[str, ...]) -> str:
    return f"{title:{TITLE_WIDTH}}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)
    )
