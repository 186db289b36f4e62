"""The drills: what goes wrong at one provider, and what is to come of it.

Each has a provider definition, an app and accounts of its own, and all happen side by side in one fleet. Subjects
begin with the drill's name, which is how a fault finds them.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from chaos.processes import ROOT
from chaos.world import Definition, World
from cli.fleet import COMMAND
from drills.found import Expected
from drills.plan import Plan
from sandbox.faults import FaultKind, FaultRule
from sandbox.selection import Stage
from tokenfleet.errors import UserError

LEAST_FLIPS: Final = 20
FLIPS_SHARE: Final = 0.01
"""The blast-radius guard lets so many accounts flip, or so large a part of them, whichever is more."""
HANG_SECONDS: Final = 30.0
WRONG_SECRET: Final = "not-the-client-secret"

Act = Callable[[World], None]


class Drill:
    """One row: the provider's answers are struck by ``rules`` for ``seconds``.

    ``name`` is for ``--only`` and the definition, ``title`` for the table.
    """

    door = False
    gives_no_tokens = True
    """While it lasts no answer carries tokens."""

    def __init__(
        self,
        name: str,
        title: str,
        seconds: float,
        rules: Sequence[FaultRule] = (),
        expected: Expected = Expected(),  # noqa: B008
    ) -> None:
        self.name, self.title, self.seconds = name, title, seconds
        self._rules = tuple(rules)
        self.expected = expected

    @property
    def prefix(self) -> str:
        """How the names of its subjects begin."""
        return f"{self.name}-"

    def definition(self, plan: Plan, accounts: int) -> Definition:
        """Return its provider definition, with the budget of so many accounts."""
        exactly = self.expected.margin_seconds
        margin = None if exactly is None else (math.ceil(exactly), math.ceil(exactly))
        return Definition(self.name, plan.pace(accounts, margin=margin), door=self.door)

    def begin(self, world: World) -> None:
        """Let it go wrong. Faults end by themselves after :attr:`seconds`."""
        if self._rules:
            world.provider.misbehave(
                *(
                    rule.model_copy(update={"prefix": self.prefix, "duration_seconds": self.seconds})
                    for rule in self._rules
                )
            )

    def meanwhile(self) -> Sequence[tuple[float, Act]]:
        """Return what else happens: after which part of the time, and what."""
        return ()

    def end(self, world: World) -> None:
        """Make right what does not end by itself."""


class Untroubled(Drill):
    """Nothing is wrong with this provider."""

    gives_no_tokens = False


class Outage(Drill):
    """The provider is down: errors and resets, and twice for a while nobody listens at all."""

    door = True

    def meanwhile(self) -> Sequence[tuple[float, Act]]:
        return ((0.2, self._shut), (0.4, self.end), (0.6, self._shut), (0.8, self.end))

    def _shut(self, world: World) -> None:
        world.provider.close_door(world.doors[self.name])

    def end(self, world: World) -> None:
        world.provider.open_door(world.doors[self.name])


class WrongSecret(Drill):
    """An operator registers a mistyped client secret, and the right one later; nobody restarts anything."""

    def begin(self, world: World) -> None:
        self._register(world, WRONG_SECRET)

    def end(self, world: World) -> None:
        self._register(world, world.provider.config.client_secret.reveal())

    def _register(self, world: World, secret: str) -> None:
        client_id = world.provider.config.client_id
        words = ("apps", "set", self.name, "--client-id", client_id, "--client-secret-file", "-")
        done = subprocess.run(
            [*COMMAND, *words],
            env=world.environ,
            input=secret,
            text=True,
            capture_output=True,
            cwd=ROOT,
            check=False,
        )
        if done.returncode:
            raise UserError(f"'tokenfleet {' '.join(words)}' failed: {done.stderr.strip()[-500:]}")


def all_drills(plan: Plan, accounts: int) -> list[Drill]:
    """Return the drills of ``plan``, for so many accounts each."""

    def rule(kind: FaultKind, **more: object) -> FaultRule:
        return FaultRule.model_validate({"kind": kind, **more})

    def throttled(form: str) -> list[FaultRule]:
        return [
            rule(
                FaultKind.STATUS_429_RETRY_AFTER,
                retry_after_seconds=plan.retry_after,
                retry_after_format=form,
            )
        ]

    guarded = Expected(
        wrong_flips=max(LEAST_FLIPS, math.floor(accounts * FLIPS_SHARE)), incident="mass_rejection"
    )
    refused = Expected(incident="client_rejected", stops=True)
    drills = [
        Outage(
            "down",
            "provider down: refused, reset, 500",
            plan.outage,
            [rule(FaultKind.RESET_BEFORE, probability=0.4), rule(FaultKind.STATUS_500)],
        ),
        Drill(
            "throttled_seconds",
            "429, Retry-After in seconds",
            plan.throttled,
            throttled("seconds"),
            Expected(waits=True),
        ),
        Drill(
            "throttled_date",
            "429, Retry-After as a date",
            plan.throttled,
            throttled("http-date"),
            Expected(waits=True),
        ),
        WrongSecret("secret", "wrong client secret, then the right one", plan.wrong_secret, (), refused),
        Drill(
            "rejected",
            "invalid_grant for everybody",
            plan.rejections,
            [rule(FaultKind.INVALID_GRANT)],
            guarded,
        ),
        Drill("firewall", "HTML 403 from a firewall", plan.firewall, [rule(FaultKind.HTML_403)]),
        Drill("error_in_200", "200 with an error body", plan.errors, [rule(FaultKind.ERROR_IN_200)]),
        Drill(
            "hanging",
            f"provider hangs, {HANG_SECONDS:.0f} s an answer",
            plan.hang,
            [rule(FaultKind.SLOW, seconds=HANG_SECONDS, stage=Stage.BEFORE_DECIDING)],
        ),
        Untroubled(
            "healthy",
            "healthy provider beside it",
            plan.hang,
            (),
            Expected(margin_seconds=plan.margin[0]),
        ),
    ]
    if plan.undescribed is not None:
        unknown = rule(FaultKind.ERROR_IN_200, error="tenant_asleep")
        drills.append(Drill("unknown", "an error that nobody described", plan.undescribed, [unknown]))
    return drills
