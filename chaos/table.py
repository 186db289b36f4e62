"""The verdict as people read it: one table of at most 100 columns, and the reasons under it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from chaos.verdict import Row, Verdict

TITLE_WIDTH: Final = 44
_HEADS: Final = (
    ("", "times", "refreshes", "presented", "", "lost by", "false", "under"),
    ("fault", "done", "meanwhile", "twice", "lost", "physics", "re-auths", "30 s"),
)
_WIDTHS: Final = (6, 10, 10, 5, 8, 9, 6)


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
        yield "Held: nothing was presented twice, nothing was lost, nobody was bothered for nothing."
    for problem in verdict.problems:
        yield f"FAILED: {problem}."
    for story in verdict.stories:
        yield f"  {story}"


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
