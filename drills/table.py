"""The rows as people read them: one table of at most 100 columns, and the reasons under it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from drills.verdict import Row

TITLE_WIDTH: Final = 40
_HEADS: Final = (
    ("", "flipped", "", "requests", "peak ÷", "all fresh", ""),
    ("drill", "wrongly", "rightly", "sent", "budget", "after", "verdict"),
)
_WIDTHS: Final = (10, 9, 10, 8, 11, 9)


def lines(rows: Sequence[Row], troubles: Sequence[str] = ()) -> Iterator[str]:
    """Yield the lines to print. ``troubles`` are the fleet's own."""
    for head in _HEADS:
        yield _line(head[0], head[1:])
    rule = "-" * (TITLE_WIDTH + sum(_WIDTHS))
    yield rule
    for row in rows:
        yield _row(row)
    yield rule
    yield ""
    for row in rows:
        if row.lateness is not None:
            before, during = row.lateness
            yield f"{row.title}: usually {before:.2f} s late before, {during:.2f} s while the others failed."
    if all(row.held for row in rows) and not troubles:
        yield "Held: nobody was flipped for good who had not revoked, no budget was exceeded, all are fresh again."
    for row in rows:
        for problem in row.problems:
            yield f"FAILED {row.name}: {problem}."
    for trouble in troubles:
        yield f"FAILED: {trouble}."


def _row(row: Row) -> str:
    wrongly = f"{row.flipped_wrongly:,}"
    if row.flipped_wrongly:
        wrongly += f" -> {row.still_flipped_wrongly:,}"
    after = "never" if row.fresh_after_seconds is None else f"{row.fresh_after_seconds:.0f} s"
    cells = (
        wrongly,
        f"{row.flipped_rightly:,}",
        f"{row.requests:,}",
        f"{row.peak:.2f}",
        after,
        "held" if row.held else "FAILED",
    )
    return _line(row.title, cells)


def _line(title: str, cells: tuple[str, ...]) -> str:
    return f"{title:{TITLE_WIDTH}}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)
    )
