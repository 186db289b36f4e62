"""The seams are where the table says, cost production nothing, and strike exactly at their hit."""

from __future__ import annotations

import ast
import asyncio
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from chaos import points, witness
from chaos.points import POINTS, Point, Role, When
from tokenfleet.errors import UserError

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = __name__


class Steps:
    """What the seams of these tests are in."""

    def __init__(self) -> None:
        self.done: list[object] = []

    def step(self, value: object) -> object:
        self.done.append(value)
        return value

    async def later(self, value: object) -> object:
        self.done.append(value)
        return value

    def publish(self, items: list[int]) -> list[int]:
        self.done.append(list(items))
        return items


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    for name in ("step", "later", "publish"):
        monkeypatch.setattr(Steps, name, vars(Steps)[name])
    monkeypatch.setattr(points, "resolve", lambda target: (Steps, target, vars(Steps)[target]))
    return Steps()


def arm(steps: Steps, target: str, when: When, *, nth: int = 1, **more: Any) -> None:
    point = Point("test", Role.WORKER, target, when, "a test", **more)
    points.install(point, lambda: steps.done.append("struck"), nth=nth)


@pytest.mark.parametrize("target", sorted({point.target for point in POINTS.values()} | set(witness.SEAMS)))
def test_every_seam_is_where_the_table_says(target: str) -> None:
    holder, name, function = points.resolve(target)
    assert vars(holder)[name] is function


@pytest.mark.parametrize(
    "target", ["store.journal:Journal.no_such", "store.no_such:append", "store.journal:SEGMENT_BYTES"]
)
def test_a_seam_that_is_gone_fails_loudly(target: str) -> None:
    with pytest.raises(UserError, match=r"chaos/points\.py"):
        points.resolve(target)


def test_every_hop_of_both_processes_has_a_point_before_and_after_it() -> None:
    hops = {name.partition(".")[0] for name in POINTS} - {"task"}
    assert hops == set(
        "claim publish lease start request answer seal journal sync commit outbox release ack".split()
    )
    assert {f"{hop}.{side}" for hop in hops for side in ("before", "after")} <= POINTS.keys()


def test_production_imports_nothing_of_chaos() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    shipped = build["targets"]["wheel"]["packages"]
    assert "chaos" not in shipped
    guilty = [
        str(path)
        for package in shipped
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if any(name.partition(".")[0] == "chaos" for name in imported(node))
    ]
    assert guilty == []


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_a_point_before_strikes_before_the_step_of_its_hit_only(steps: Steps) -> None:
    arm(steps, "step", When.BEFORE, nth=2)
    assert [steps.step(1), steps.step(2), steps.step(3)] == [1, 2, 3]
    assert steps.done == [1, "struck", 2, 3]


def test_a_point_after_strikes_once_the_step_is_done(steps: Steps) -> None:
    arm(steps, "later", When.AFTER)
    assert asyncio.run(steps.later(1)) == 1
    assert steps.done == [1, "struck"]


def test_a_point_on_the_wire_lets_the_loop_turn_before_it_strikes(steps: Steps) -> None:
    arm(steps, "later", When.ON_THE_WIRE)

    async def run() -> None:
        asyncio.get_running_loop().call_soon(steps.done.append, "the loop has written")
        await steps.later(1)

    asyncio.run(run())
    assert steps.done == [1, "the loop has written", "struck"]


def test_a_point_within_strikes_in_the_middle_of_a_sequence(steps: Steps) -> None:
    arm(steps, "publish", When.WITHIN, counts=lambda _, items: len(items) > 1)
    assert steps.publish([1]) == [1]
    assert steps.publish([1, 2, 3]) == [1, 2, 3]
    assert steps.done == [[1], [1], "struck", [2, 3]]


def test_calls_that_do_not_count_are_no_hits(steps: Steps) -> None:
    only_large: Callable[..., bool] = lambda _, value: value > 10  # noqa: E731
    arm(steps, "step", When.AFTER, counts=only_large)
    for value in (1, 11, 12):
        steps.step(value)
    assert steps.done == [1, 11, "struck", 12]
