"""The timeline: nothing is left out, and years of it are one screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cli.accounts_history import LINES, _when
from cli.timeline import NEWEST, Line, timeline
from store.history import HistoryRow
from tests.cli.test_explain import ACCOUNT, NOW
from tests.cli.test_story import NOTHING, OPERATOR, REJECTED, _action, _row

SUCCESS = "refresh.succeeded"


def _lines(rows: Sequence[HistoryRow], *, room: int | None = LINES) -> list[Line]:
    return timeline(ACCOUNT, replace(NOTHING, history=rows), room=room)


def test_thousands_of_refreshes_are_one_line_that_says_how_many_over_which_span_and_how_long_they_took() -> (
    None
):
    rows = [_row(60 * n, SUCCESS, duration_ms=100 + n % 50, epoch=3000 - n) for n in range(2000)]
    [line] = _lines(rows)
    assert (line.told, line.took) == (f"{SUCCESS} x2,000 in 83 d 7 h", "100 to 149 ms")
    assert line.attempt == f"{ACCOUNT.account_id}-3000"


def test_five_thousand_failures_in_turns_keep_the_moment_they_began_on_the_screen() -> None:
    kinds = [("refresh.unavailable", "http_503"), ("refresh.unknown", "timeout")]
    failed = [_row(10 * n, *kinds[n % 2]) for n in range(5000)]
    fine = [_row(50_000 + 10 * n, SUCCESS) for n in range(300)]
    failures, successes = _lines([*failed, *fine])
    assert failures.told == (
        "refresh.unavailable (http_503) x2,500, refresh.unknown (timeout) x2,500 in 34 d 17 h"
    )
    assert (successes.told.split(" in ")[0], failures.count) == (f"{SUCCESS} x300", 5000)
    assert len(_lines([*failed, *fine], room=None)) == 5001


def test_successes_and_failures_in_turns_leave_the_newest_as_they_are() -> None:
    rows = [
        _row(n, SUCCESS if n % 2 else "refresh.unavailable", None if n % 2 else "http_503") for n in range(60)
    ]
    *newest, older = _lines(rows)
    assert [line.count for line in newest] == [1] * NEWEST
    assert (older.count, dict(older.mixed)) == (55, {SUCCESS: 28, "refresh.unavailable (http_503)": 27})


def test_a_refresh_of_several_requests_that_goes_well_is_folded_like_any_other() -> None:
    rows = [_row(n, "steps.begun" if n % 2 else SUCCESS) for n in range(100)]
    [line] = _lines(rows)
    assert dict(line.mixed) == {SUCCESS: 50, "steps.begun": 50}


def test_what_changed_the_status_and_what_people_did_is_never_folded_away() -> None:
    deeds = [
        REJECTED,
        _row(6, "account.reconnected", status_from="needs_reauth", status_to="active", actor=OPERATOR),
    ]
    between = [
        replace(row, at=row.at - 100 * number * (NOW - REJECTED.at)) for number in range(30) for row in deeds
    ]
    noise = [replace(_row(n, SUCCESS), at=row.at) for n, row in enumerate(between)]
    lines = _lines([*between, *noise])
    assert [line.what for line in lines].count("account.grant_rejected") == 30
    assert [line.what for line in lines].count("account.reconnected") == 30


def test_more_ways_to_fail_than_fit_are_counted() -> None:
    rows = [_row(n, "refresh.unavailable", f"http_{500 + n % 7}") for n in range(70)]
    [line] = _lines(rows)
    assert line.told.count("http_") == 3
    assert "others x40" in line.told


def test_a_pause_is_told_from_the_audit_log_when_history_is_no_longer_kept() -> None:
    story = replace(NOTHING, actions=[_action(500_000, "accounts.pause", "ticket\n17 " + "x" * 500)])
    [line] = timeline(ACCOUNT, story, room=LINES)
    assert line.told.startswith("accounts.pause, by operator ada, reason: ticket 17 xxx")
    assert len(line.told) < 220
    kept = _row(500_001, "account.paused", status_from="active", status_to="paused")
    lines = timeline(ACCOUNT, replace(story, history=[kept]), room=LINES)
    assert [each.what for each in lines] == ["account.paused"]


def test_what_was_in_another_year_says_which() -> None:
    assert _when(NOW, NOW) == f"{NOW:%m-%d %H:%M:%S}Z"
    assert _when(NOW.replace(year=NOW.year - 1), NOW).startswith(f"{NOW.year - 1}-")
