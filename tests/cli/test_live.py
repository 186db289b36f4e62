"""The live view of ``up`` and ``demo``: it draws whatever the fleet is in, above all trouble."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sqlalchemy import Engine

from cli.live import BARS, SHOWN_TROUBLES, LiveView, Sample, Sampler, sparkline
from embedded.supervisor import ChildState
from store import apps
from store.keys import Vault
from tests.support.builders import make_account, make_app, now
from tokenfleet.settings import Settings

DYING: Final = Sample(
    elapsed=61,
    statuses={"active": 3, "needs_reauth": 1},
    due=3,
    claimed=0,
    overdue_seconds=200,
    failing=3,
    per_second=0,
    failed_per_second=2,
    lowest=-180,
    median=-20,
    highest=10,
    troubles=tuple(f"acme/production/app-{number}: circuit is open" for number in range(SHOWN_TROUBLES + 1)),
)


@given(st.lists(st.floats(-1e6, 1e6)))
def test_any_figures_make_a_row_of_bars(values: list[float]) -> None:
    assert len(sparkline(values)) == len(values)
    assert set(sparkline(values)) <= set(BARS)


def test_a_fleet_whose_tokens_have_expired_is_drawn_with_its_trouble() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=40)
    with LiveView("tokenfleet up", console, lambda: "footer") as view:
        view.show(DYING, [ChildState("worker-1", None, 3, "exit code 1", Path("worker-1.log"))])
        # So that the row of the least time to live goes from well to long expired.
        for lowest in (30.0, -400.0):
            view.show(replace(DYING, lowest=lowest), [])
    drawn = screen.getvalue()
    assert "acme/production/app-0: circuit is open" in drawn
    assert f"acme/production/app-{SHOWN_TROUBLES}:" not in drawn
    assert "and more: 'tokenfleet status' shows them" in drawn


def test_without_a_terminal_trouble_is_a_line_of_its_own() -> None:
    screen = io.StringIO()
    with LiveView("tokenfleet up", Console(file=screen), lambda: "") as view:
        view.show(DYING, [])
    first, *others = screen.getvalue().splitlines()
    assert "failing 3" in first
    assert [line.strip() for line in others] == list(DYING.troubles)


def test_a_sample_tells_what_stands_between_an_app_and_its_provider(
    engine: Engine, vault: Vault, settings: Settings
) -> None:
    app = make_app(engine, vault, name="default")
    make_account(engine, vault, app, expires_in=timedelta(minutes=-1))
    with engine.begin() as connection:
        apps.pause_until(connection, [app], [now() + timedelta(hours=1)])
    sample = Sampler(engine, settings).take()
    [trouble] = sample.troubles
    assert trouble.startswith("acme/production/default: paused until")
    assert sample.lowest is not None
    assert sample.lowest < 0
