"""What a demonstration proved: the sandbox's ledger and the database, held side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, text

from cli.live import Sample
from sandbox.authority import LedgerReport, LiveTokens
from sandbox.tokens import fingerprint
from store.keys import Vault
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose

PROMISED_SECONDS = 30.0
"""G1: an active account's token always has at least this long to live."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, whether it held, and the figure that says so."""

    promise: str
    held: bool
    figure: str


@dataclass(frozen=True, slots=True)
class Holdings:
    """How the database's tokens compare with what the sandbox says a client ought to hold."""

    accounts: int
    active: int
    lost: int
    unusable: int


def compare(engine: Engine, vault: Vault, live: Sequence[LiveTokens], environment: str) -> Holdings:
    """Open every stored token of ``environment`` and compare its fingerprint with the sandbox's.

    ``lost``: accounts whose live refresh token the database does not hold. ``unusable``: accounts whose
    access token in the database is not the one the sandbox would accept.
    """
    expected = {each.subject: each for each in live}
    with engine.connect() as connection:
        rows = connection.execute(
            text("""
                SELECT a.id, a.external_id, a.status, t.generation, t.access_token, t.refresh_token
                FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id
                WHERE a.environment = :environment
            """),
            {"environment": environment},
        ).all()
    lost = unusable = active = 0
    for row in rows:
        active += row.status == "active"
        tokens = expected.pop(row.external_id)
        refresh = vault.refresh.open(
            row.refresh_token, refresh_token_binding(row.id, row.generation), Purpose.VERIFY
        )
        access = vault.access.open(
            row.access_token, access_token_binding(row.id, row.generation), Purpose.VERIFY
        )
        lost += fingerprint(Secret(refresh)) != tokens.refresh_token_sha256
        unusable += fingerprint(Secret(access)) != tokens.access_token_sha256
    return Holdings(accounts=len(rows), active=active, lost=lost + len(expected), unusable=unusable)


def judge(
    ledger: LedgerReport, holdings: Holdings, samples: Sequence[Sample], *, lifetime: int, lifetimes: int
) -> list[Check]:
    """Return one check per promise. ``lifetimes`` is how many each account had to live through."""
    promised = min(PROMISED_SECONDS, lifetime / 2)
    lowest = min((sample.lowest for sample in samples if sample.lowest is not None), default=float("-inf"))
    enough = holdings.accounts * lifetimes
    return [
        Check(
            f"G1 fresh: no reader saw less than {promised:.0f} s to live",
            lowest >= promised and len(samples) >= lifetime * lifetimes / 2,
            f"least {lowest:.1f} s in {len(samples)} samples",
        ),
        Check(
            "G2 single use: no refresh token presented twice",
            ledger.presented_twice == 0,
            f"{ledger.presented_twice} of {ledger.refreshes:,} presented twice",
        ),
        Check(
            "G3 nothing lost: the database holds every live successor",
            holdings.lost == 0 and holdings.unusable == 0,
            f"{holdings.lost} lost, {holdings.unusable} unusable of {holdings.accounts:,}",
        ),
        Check(
            "G4 no false alarm: every account is still active",
            holdings.active == holdings.accounts,
            f"{holdings.active:,} of {holdings.accounts:,} active",
        ),
        Check(
            f"Enough happened: {lifetimes} lifetimes of {lifetime} s for every account",
            ledger.refreshes >= enough,
            f"{ledger.refreshes:,} refreshes, at least {enough:,} were due",
        ),
    ]
