"""Every rule of the verdict, on made-up evidence: what holds, and what each rule is there to see."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drills import table
from drills.__main__ import keep_evidence
from drills.found import Evidence, Expected, Incident, Told
from drills.verdict import fresh_after, judge, lateness, peak, sent_early
from sandbox.traffic import Arrival, Wait
from tokenfleet.account import EventType

BEGAN, ENDED = 100.0, 160.0
FLIPPED = EventType.AUTHENTICATION_ERROR
BACK = EventType.REACTIVATED


def arrivals(*moments: float, left: float = 40.0) -> list[Arrival]:
    return [Arrival(at, left) for at in moments]


EVENLY = arrivals(*(70.0 + number / 2 for number in range(400)))
"""Two a second, from before the fault until long after it."""
HELD = Evidence(
    name="drill",
    title="a provider that fails",
    accounts=500,
    expected=Expected(),
    rate=5.0,
    burst=5,
    quiet_since=70.0,
    began=BEGAN - 1,
    struck=BEGAN,
    mending=ENDED,
    ended=ENDED,
    recovery_seconds=60.0,
    arrivals=EVENLY,
    waits=[],
    forgotten=0,
    stale=[(at, 3 if BEGAN < at < 175 else 0) for at in map(float, range(70, 260))],
    seen_flipped={"left": 170.0},
    flipped_in_the_end=frozenset({"left"}),
    told=[Told("left", FLIPPED, 169.5)],
    revoked={"left": 120.0},
    incidents=[],
    incidents_told={},
    ill_saved=frozenset(),
    presented_twice=0,
)
GUARDED = replace(
    HELD,
    expected=Expected(wrong_flips=20, incident="mass_rejection"),
    seen_flipped={"left": 170.0, "kept": 105.0},
    told=[Told("kept", FLIPPED, 104.0), Told("left", FLIPPED, 169.5), Told("kept", BACK, 171.0)],
    incidents=[Incident("mass_rejection", 105.0, 165.0)],
    incidents_told={EventType.INCIDENT_OPENED: 1, EventType.INCIDENT_RESOLVED: 1},
)
STOPPED = replace(
    HELD,
    expected=Expected(incident="client_rejected", stops=True),
    arrivals=[each for each in EVENLY if not BEGAN + 5 < each.at < ENDED],
    incidents=[Incident("client_rejected", 101.0, 160.0)],
    incidents_told={EventType.INCIDENT_OPENED: 1, EventType.INCIDENT_RESOLVED: 1},
)
THROTTLED = replace(
    HELD,
    expected=Expected(waits=True),
    arrivals=[each for each in EVENLY if not 111 < each.at < 140],
    waits=[Wait(110.0, 140.0), Wait(110.4, 140.4), Wait(140.5, 145.0)],
)
BESIDE = replace(HELD, expected=Expected(margin_seconds=40.0), stale=[(at, 0) for at, _ in HELD.stale])


@pytest.mark.parametrize("evidence", [HELD, GUARDED, STOPPED, BESIDE], ids=["any", "guard", "stop", "beside"])
def test_what_was_promised_holds(evidence: Evidence) -> None:
    assert judge(evidence).problems == ()
    assert judge(evidence).held


def test_a_client_that_waits_as_it_was_told_holds() -> None:
    obedient = [each for each in THROTTLED.arrivals if not 111 < each.at < 145]
    assert judge(replace(THROTTLED, arrivals=obedient)).problems == ()


@pytest.mark.parametrize(
    ("evidence", "changes", "words"),
    [
        (HELD, {"seen_flipped": {"left": 170.0, "kept": 130.0}}, "1 account (kept) flipped wrongly"),
        (
            HELD,
            {"told": [Told("kept", FLIPPED, 130.0), Told("kept", BACK, 131.0), *HELD.told]},
            "1 account (kept) flipped wrongly",
        ),
        (HELD, {"revoked": {"left": 172.0}}, "1 account (left) flipped wrongly"),
        (
            GUARDED,
            {"seen_flipped": {f"kept-{number}": 105.0 for number in range(21)}},
            "22 accounts (kept, kept-0, kept-1, kept-10, kept-11, ...) flipped wrongly, of which 20 were allowed",
        ),
        (GUARDED, {"flipped_in_the_end": frozenset({"left", "kept"})}, "1 account (kept) not taken back"),
        (
            HELD,
            {"revoked": {"left": 120.0, "other": 121.0}},
            "1 account (other) revoked and not flipped",
        ),
        (HELD, {"told": []}, "1 account (left) not told exactly what happened, once"),
        (HELD, {"told": [*HELD.told, *HELD.told]}, "1 account (left) not told exactly what happened, once"),
        (GUARDED, {"told": GUARDED.told[:2]}, "1 account (kept) not told exactly what happened, once"),
        (
            HELD,
            {"told": [*HELD.told, *[Told("kept", EventType.REFRESH_FAILING, 140.0)] * 2]},
            "1 account (kept) not told exactly what happened, once",
        ),
        (
            HELD,
            {"incidents": GUARDED.incidents, "incidents_told": GUARDED.incidents_told},
            "incidents: 1 mass_rejection; expected: none",
        ),
        (
            GUARDED,
            {"incidents": [], "incidents_told": {}},
            "incidents: none; expected: mass_rejection",
        ),
        (
            STOPPED,
            {
                "incidents": [*STOPPED.incidents, Incident("client_rejected", 120.0, 160.0)],
                "incidents_told": {EventType.INCIDENT_OPENED: 2, EventType.INCIDENT_RESOLVED: 2},
            },
            "incidents: 2 client_rejected; expected: client_rejected",
        ),
        (
            GUARDED,
            {
                "incidents": [Incident("mass_rejection", 105.0, None)],
                "incidents_told": {EventType.INCIDENT_OPENED: 1},
            },
            "1 incident is still open",
        ),
        (
            GUARDED,
            {"incidents_told": {EventType.INCIDENT_OPENED: 1, EventType.INCIDENT_RESOLVED: 2}},
            "2 events provider:incident_resolved for 1 incident",
        ),
        (HELD, {"arrivals": arrivals(*[110.0] * 11)}, "the budget was exceeded: peak 1.10"),
        (THROTTLED, {}, "7 requests were sent before Retry-After"),
        (STOPPED, {"arrivals": EVENLY}, "requests did not stop: 110 in 55 s, of which 7 were allowed"),
        (HELD, {"stale": [(at, 3) for at in (70.0, 161.0, 220.0)]}, "3 accounts were never fresh again"),
        (HELD, {"stale": []}, "500 accounts were never fresh again"),
        (HELD, {"recovery_seconds": 10.0}, "all fresh again only after 15 s"),
        (
            HELD,
            {"stale": [*HELD.stale, (260.0, 2), (261.0, 0)]},
            "up to 2 accounts went stale again afterwards",
        ),
        (
            BESIDE,
            {"arrivals": [replace(each, seconds_left=38.5 if each.at > BEGAN else 40) for each in EVENLY]},
            "usually 1.5 s late during the fault, 0.0 s before",
        ),
        (
            BESIDE,
            {"arrivals": [each for each in EVENLY if each.at > BEGAN]},
            "usually 0.0 s late during the fault, nan s before",
        ),
        (BESIDE, {"stale": HELD.stale}, "accounts went stale beside the fault"),
        (
            HELD,
            {"ill_saved": frozenset({"kept"})},
            "1 account (kept) held tokens that are not the provider's",
        ),
        (HELD, {"presented_twice": 1}, "1 refresh token was presented twice"),
        (
            HELD,
            {"arrivals": [each for each in EVENLY if not BEGAN - 1 <= each.at < ENDED]},
            "too little happened: no request came during the fault",
        ),
        (
            HELD,
            {"revoked": {}, "seen_flipped": {}, "flipped_in_the_end": frozenset(), "told": []},
            "too little happened: nobody revoked",
        ),
        (
            HELD,
            {"expected": Expected(waits=True)},
            "too little happened: nobody was told to wait",
        ),
        (HELD, {"forgotten": 7}, "the authorization server has forgotten 7 requests: take fewer accounts"),
    ],
)
def test_each_rule_sees_what_it_is_there_for(evidence: Evidence, changes: dict[str, Any], words: str) -> None:
    row = judge(replace(evidence, **changes))
    assert words in row.problems
    assert not row.held


def test_the_peak_is_that_of_the_fullest_window_wherever_it_begins() -> None:
    # Four at once in the middle of a second: never more than rate * 1 + burst = 3 may come in one.
    assert peak([0.0, 9.4, 9.6, 9.8, 10.3, 20.0], rate=2.0, burst=1) == pytest.approx(4 / 3)


def test_a_window_of_ten_seconds_sees_what_one_second_hides() -> None:
    # 30 in ten seconds are at most 4 in any one, of 2 + 2; but 20 + 2 may come in ten.
    assert peak([number / 3 for number in range(30)], rate=2.0, burst=2) == pytest.approx(30 / 22)


def test_a_window_ends_before_the_moment_that_is_its_width_away() -> None:
    assert peak([0.0, 1.0, 2.0], rate=1.0, burst=1) == pytest.approx(1 / 2)


def test_nobody_asked_is_no_pace() -> None:
    assert peak([], rate=1.0, burst=1) == 0.0


def test_what_was_on_its_way_is_not_early() -> None:
    waits = [Wait(10.0, 40.0)]
    assert sent_early([10.0, 10.9, 40.0], waits) == 0
    assert sent_early([11.1, 39.9], waits) == 2


def test_the_longest_wait_that_is_known_counts() -> None:
    assert sent_early([20.0], [Wait(10.0, 40.0), Wait(11.0, 12.0)]) == 1
    assert sent_early([20.0], [Wait(10.0, 12.0), Wait(19.5, 40.0)]) == 0


def test_freshness_counts_from_the_end_of_the_fault() -> None:
    assert fresh_after(HELD) == 15.0


def test_who_was_never_stale_is_fresh_at_once() -> None:
    assert fresh_after(BESIDE) == 0.0


def test_a_recovery_is_over_when_the_last_one_is_fresh() -> None:
    looks = [(159.0, 9), (160.5, 0), (161.5, 2), (170.0, 1), (171.0, 0), (200.0, 0)]
    assert fresh_after(replace(HELD, stale=looks)) == 11.0
    assert fresh_after(replace(HELD, stale=looks[:2])) == 0.5
    assert fresh_after(replace(HELD, stale=[*looks, (219.0, 1)])) is None
    assert fresh_after(replace(HELD, stale=[*looks, (219.0, 1), (300.0, 0)])) == 140.0


def test_lateness_is_what_most_do_not_exceed() -> None:
    late = [Arrival(80.0 + number / 10, 40.0 - number) for number in range(100)]
    before, during = lateness(replace(BESIDE, arrivals=late))
    assert before == 94.0
    assert math.isnan(during)


def test_the_row_counts_who_flipped_and_who_still_is() -> None:
    row = judge(GUARDED)
    assert (row.flipped_wrongly, row.still_flipped_wrongly, row.flipped_rightly) == (1, 0, 1)
    assert row.requests == len(EVENLY)


def test_what_was_judged_can_be_kept(tmp_path: Path) -> None:
    keep_evidence([GUARDED], tmp_path)
    kept = json.loads((tmp_path / "drill.json").read_text())
    assert kept["arrivals"][0] == {"at": 70.0, "seconds_left": 40.0}
    assert kept["flipped_in_the_end"] == ["left"]
    assert kept["incidents"] == [{"kind": "mass_rejection", "opened": 105.0, "resolved": 165.0}]


def test_the_table_fits_a_terminal_and_gives_every_reason() -> None:
    rows = [judge(each) for each in (HELD, GUARDED, BESIDE, replace(HELD, presented_twice=1, stale=[]))]
    lines = list(table.lines(rows))
    assert max(map(len, lines)) <= 100
    assert [line.split()[-1] for line in lines if line.startswith("a provider that fails  ")] == [
        *("held", "held", "held", "FAILED")
    ]
    assert lines[-2:] == [
        "FAILED drill: 500 accounts were never fresh again.",
        "FAILED drill: 1 refresh token was presented twice.",
    ]
    assert "1 -> 0" in lines[4]
    assert not any(line.startswith("Held") for line in lines)
    assert any(line.startswith("Held") for line in table.lines(rows[:3]))
    assert list(table.lines(rows[:3], ["a worker ended by itself with 1"]))[-1] == (
        "FAILED: a worker ended by itself with 1."
    )
