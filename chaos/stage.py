"""The world of the crash suite: one provider, customers who all hold its tokens, and a short time ladder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import text

from chaos.orders import Deed
from chaos.points import Role
from chaos.processes import Child
from chaos.world import World
from sandbox.config import SandboxConfig
from tokenfleet.jobs import AccountId

ACCESS_SECONDS: Final = 60
LATENCY_SECONDS: Final = 0.02
CALL_SECONDS: Final = 2.5
CLAIM_SECONDS: Final = 6.0
TICK_SECONDS: Final = 0.1
LADDER: Final = {
    "TOKENFLEET_HTTP_TIMEOUT_SECONDS": str(CALL_SECONDS),
    "TOKENFLEET_LEASE_SECONDS": "5.5",
    "TOKENFLEET_CLAIM_SECONDS": str(CLAIM_SECONDS),
    # After a fault much is due at once. A worker that opens a thousand connections on a busy machine waits for
    # them longer than its calls may take.
    "TOKENFLEET_MAX_IN_FLIGHT": "300",
    "TOKENFLEET_TICK_SECONDS": str(TICK_SECONDS),
}
"""A dead worker's accounts are asked about again after one claim, so a run sees hundreds of them expire."""
VICTIMS_OWN: Final = {"TOKENFLEET_WORKER_THREADS": "2"}


class Stage(World):
    """The world, from ``with`` to its end. Leaves no process behind."""

    def __init__(self, home: Path, *, accounts: int, seed: int) -> None:
        config = SandboxConfig(
            access_lifetime_seconds=ACCESS_SECONDS,
            latency_seconds=(LATENCY_SECONDS, LATENCY_SECONDS),
            seed=seed,
        )
        super().__init__(home, config, settings=LADDER)
        self.subjects: Final = tuple(f"customer-{number}" for number in range(accounts))
        self.ids: dict[str, AccountId] = {}

    def sign_in(self, subjects: Sequence[str]) -> None:
        """Let customers sign in and import what they got."""
        self.take_in(self.provider.sign_in(subjects))

    def start(self, role: Role, *, point: str | None = None, nth: int = 1, deed: Deed = Deed.DIE) -> Child:
        """Start one process of the fleet. A victim takes few jobs at once: those that die with it are waited for."""
        environ = self.environ if point is None else self.environ | VICTIMS_OWN
        return self.processes.start(role, environ, point=point, nth=nth, deed=deed)

    def learn_ids(self) -> None:
        """Look up which account is which customer."""
        with self.engine.connect() as connection:
            rows = connection.execute(text("SELECT id, external_id FROM tokenfleet.accounts"))
            self.ids = {row.external_id: AccountId(row.id) for row in rows}
