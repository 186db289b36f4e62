"""How one drill goes: what happens when, and what is put on record meanwhile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from chaos.world import World
from drills.evidence import ill_saved
from drills.roster import Act, Drill

COMPARED_AFTER: Final = 0.9
"""After so much of its time the tokens in the database are compared with the provider's."""


@dataclass(slots=True)
class Course:
    """One drill from its beginning to its end."""

    drill: Drill
    subjects: Sequence[str]
    leaving: Sequence[tuple[float, str]]
    """Whose customers end their grants, after which part of the time, in order."""
    began: float = 0.0
    struck: float = 0.0
    """When it had certainly gone wrong."""
    mending: float = 0.0
    """When somebody, or the passing of time, began to make it right."""
    ended: float = 0.0
    """0 before."""
    revoked: dict[str, float] = field(default_factory=dict)
    """Who has really ended the grant, and when."""
    ill_saved: frozenset[str] = frozenset()
    """Who held tokens during the fault that are not the provider's."""
    _acts: list[tuple[float, Act]] = field(default_factory=list)
    _left: int = 0

    @property
    def is_over(self) -> bool:
        """Whether everything is right again."""
        return bool(self.ended)

    @property
    def is_on(self) -> bool:
        """Whether something is wrong."""
        return bool(self.began) and not self.ended

    def begin(self, world: World) -> None:
        """Let it go wrong."""
        began = time.time()
        self.drill.begin(world)
        self._acts = sorted(
            [*self.drill.meanwhile(), (COMPARED_AFTER, self._compare)], key=lambda each: each[0]
        )
        self.began, self.struck = began, time.time()

    def advance(self, world: World) -> None:
        """Do what is due by now."""
        if not self.is_on:
            return
        share = (time.time() - self.struck) / self.drill.seconds
        self._let_leave(world, share)
        while self._acts and self._acts[0][0] <= share:
            self._acts.pop(0)[1](world)
        if share >= 1:
            self.mending = time.time()
            self.drill.end(world)
            self.ended = time.time()

    def _let_leave(self, world: World, share: float) -> None:
        first = self._left
        while self._left < len(self.leaving) and self.leaving[self._left][0] <= share:
            self._left += 1
        if self._left > first:
            at = time.time()
            leaving = [subject for _, subject in self.leaving[first : self._left]]
            self.revoked |= dict.fromkeys(world.provider.revoke(leaving), at)

    def _compare(self, world: World) -> None:
        # Of answers that never carry a token none may be saved. Where tokens rotate meanwhile, a difference may be
        # an answer that is just under way: with thousands of accounts the fault ends while they are compared. What is
        # wrong stays wrong, so it is looked at twice.
        if self.drill.gives_no_tokens:
            self.ill_saved = self._held_amiss(world)
            if self.ill_saved:
                self.ill_saved &= self._held_amiss(world)

    def _held_amiss(self, world: World) -> frozenset[str]:
        return ill_saved(world.engine, world.vault, world.provider.live(), self.drill.prefix)
