"""The drill of receivers: each promise broken once, and the table that is printed. No run."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from drills.receivers.__main__ import main
from drills.receivers.found import Delivered, Endpoint, Evidence, Refresh, Told
from drills.receivers.roster import DISABLED, FAILING, HEALTHY, KINDS, PUBLIC, End, Kind, Pace
from drills.receivers.table import lines
from drills.receivers.verdict import judge, percentiles

BEGAN, ENDED = 1100.0, 1200.0
TOLD = [Told(UUID(int=number), number % 3, number) for number in range(120)]
RECEIVED = [(each.event_id, each.account, each.number) for each in TOLD]


def _endpoint(kind: Kind) -> Endpoint:
    """One that did what is expected of it."""
    takes = kind.end in {End.TAKES_ALL, End.LIVES}
    moments = [1000 + 200 * number / len(TOLD) for number in range(len(TOLD))]
    return Endpoint(
        kind=kind,
        told=TOLD,
        received=RECEIVED if takes else (),
        delivered=[Delivered(at, at + 0.2) for at in moments] if takes else (),
        failed=5 if kind.end is End.GONE else 0,
        waiting=0 if takes else len(TOLD),
        attempts=len(TOLD),
        errors={} if takes else {"not_public": 10},
        is_spared=kind.end is End.SPARED,
        disabled_reason={End.GONE: "gone", End.DISABLED: "failing"}.get(kind.end),
        alarmed=kind.end in {End.GONE, End.DISABLED},
        strayed=0,
    )


def _evidence(name: str | None = None, **changes: Any) -> Evidence:
    """A run in which everything held, but for one endpoint that is changed."""
    found = [_endpoint(kind) for kind in KINDS]
    if name is not None:
        found = [replace(each, **changes) if each.kind.name == name else each for each in found]
    refreshes = [Refresh(1000 + number, 1000.3 + number) for number in range(200)]
    return Evidence(
        quiet_since=1000.0,
        began=BEGAN,
        ended=ENDED,
        endpoints=found,
        refreshes=refreshes,
        presented_twice=0,
        witnessed=1,
        troubles=(),
    )


def test_a_run_in_which_everybody_did_as_expected_holds() -> None:
    evidence = _evidence()
    verdict = judge(evidence)
    assert verdict.problems == []
    printed = list(lines(evidence, verdict, Pace(60.0)))
    for kind in KINDS:
        assert any(line.startswith(f"{kind.name} ") for line in printed)
    assert printed[-1].startswith("Held: ")
    assert max(map(len, printed)) <= 132


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("redirecting", {"strayed": 1}, "redirecting: 1 connection went where none may go"),
        ("loopback", {"delivered": [Delivered(1, 2)], "waiting": 119}, "loopback: it took something"),
        ("metadata", {"errors": {"timeout": 3}}, "metadata: other words than not_public"),
        ("dead", {"is_spared": False}, "dead: it took something, or is not known to fail"),
        ("dead", {"attempts": 1}, "dead: only 1 attempt"),
        ("dead", {"waiting": 119}, "dead: 1 event of 120 neither delivered nor waiting"),
        (HEALTHY, {"received": RECEIVED[1:]}, "healthy: the order of 1 account was not kept"),
        (HEALTHY, {"received": RECEIVED[:-1]}, "healthy: 1 event never came"),
        (FAILING, {"received": [*RECEIVED[3:], *RECEIVED[:3]]}, "failing: the order of 3 accounts was not kept"),
        (FAILING, {"failed": 2}, "failing: 2 events were given up within the hour"),
        (FAILING, {"waiting": 1, "delivered": _endpoint(KINDS[0]).delivered[1:]}, "failing: 1 event waits still"),
        ("gone", {"disabled_reason": None}, "gone: disabled: no; expected: gone"),
        (DISABLED, {"alarmed": False}, "refusing: it was disabled, and no alarm said so"),
        ("rebinding", {"delivered": (), "waiting": 120}, "rebinding: it took nothing"),
    ],
)  # fmt: skip
def test_each_broken_promise_is_named(name: str, changes: dict[str, Any], problem: str) -> None:
    problems = judge(_evidence(name, **changes)).problems
    assert any(problem in each for each in problems), problems


def test_what_others_notice_is_named() -> None:
    slow = [
        Refresh(each.due, each.due + (0.3 if each.due < BEGAN else 2.0)) for each in _evidence().refreshes
    ]
    delays = [
        Delivered(each.told_at, each.told_at + (0.2 if each.told_at < BEGAN else 3.0))
        for each in _endpoint(KINDS[0]).delivered
    ]
    for evidence, what in (
        (replace(_evidence(), refreshes=slow), "a refresh, from due to saved"),
        (_evidence(HEALTHY, delivered=delays), "an event, to the healthy receiver"),
    ):
        assert judge(evidence).problems == [f"the trouble was noticed by others: {what}"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"refreshes": ()}, "too little happened to say how long it took: a refresh"),
        ({"witnessed": 0}, "the worker wrote down no connection at all"),
        ({"presented_twice": 1}, "1 refresh token was presented twice"),
        ({"troubles": ("a process ended",)}, "a process ended"),
    ],
)
def test_a_run_that_proves_nothing_has_not_held(changes: dict[str, Any], problem: str) -> None:
    assert any(problem in each for each in judge(replace(_evidence(), **changes)).problems)


def test_percentiles_are_values_that_were_seen() -> None:
    assert percentiles(range(1, 101)) == (50, 99)
    assert percentiles([7.0]) == (7.0, 7.0)


def test_nobody_is_expected_to_send_to_an_address_that_is_not_the_one_declared_public() -> None:
    for kind in KINDS:
        addresses = {address for answer in kind.resolves for address in answer}
        if kind.end is End.SPARED and addresses:
            assert addresses != {PUBLIC}
        assert not addresses or kind.host.endswith(".example")


@pytest.mark.parametrize("words", ["--unknown", "--json /nonexistent/rows.json", "--keep /dev/null/evidence"])
def test_what_cannot_be_run_is_refused_in_one_sentence(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(words.split())
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert re.fullmatch(r"(drills\.)?receivers: [^\n]+\n", capsys.readouterr().err)


def test_the_receivers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "500 for an hour, then 204" in capsys.readouterr().out
