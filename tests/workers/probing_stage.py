"""A fleet whose accounts live by a definition that a test chooses, at a sandbox whose clock a test can turn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Engine, text

from providers import load_registry
from sandbox.config import SandboxConfig
from sandbox.definition import definition_toml
from sandbox.server import SandboxServer
from store import claiming
from store.claiming import Allowance
from store.keys import Vault
from tests.support.fleet import Fleet
from tokenfleet.jobs import AccountId, RefreshJob
from tokenfleet.settings import Settings


class Clock:
    """The sandbox's clock: this machine's, and what was added to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def server_of(config: SandboxConfig | None = None, clock: Clock | None = None) -> SandboxServer:
    return SandboxServer(config or SandboxConfig(), clock=clock or Clock())


def fleet_of(
    engine: Engine,
    vault: Vault,
    settings: Settings,
    server: SandboxServer,
    providers: Path,
    changes: Mapping[str, str] | None = None,
) -> Fleet:
    """A fleet whose definition is the sandbox's own, with the lines named in ``changes`` replaced."""
    fleet = Fleet(engine, vault, settings, server, providers)
    definition = definition_toml(server.url, server.config)
    for line, other in (changes or {}).items():
        assert line in definition
        definition = definition.replace(line, other)
    (providers / "sandbox.toml").write_text(definition)
    fleet.registry = load_registry(providers, allow_http=True)
    return fleet


def visit_now(fleet: Fleet, account_id: AccountId, **columns: object) -> list[RefreshJob]:
    """Make the planned visit of an account due, with further columns of its rows set, and claim it."""
    tables = {"probing": "refresh_schedule", "alive_at": "refresh_schedule", "granted_at": "accounts"}
    with fleet.engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() WHERE account_id = :id"),
            {"id": account_id},
        )
        for name, value in columns.items():
            table = tables.get(name, "token_sets")
            key = "id" if table == "accounts" else "account_id"
            moment = "now() + CAST(:value AS interval)" if isinstance(value, timedelta) else ":value"
            connection.execute(
                text(f"UPDATE tokenfleet.{table} SET {name} = {moment} WHERE {key} = :id"),
                {"id": account_id, "value": value},
            )
        claims = claiming.claim_due(
            connection, [Allowance(fleet.app.app_id, 100, 100)], claim=timedelta(seconds=30)
        )
    [claim] = claims[fleet.app.app_id]
    assert claim.account_id == account_id
    return [
        RefreshJob("00000000-0000-4000-8000-00000000000b", fleet.app.app_id, ((account_id, claim.epoch),))
    ]


def plan_of(fleet: Fleet, account_id: AccountId) -> tuple[bool, float]:
    """Return whether the next visit is a probing one, and in how many seconds it is."""
    with fleet.engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT probing, EXTRACT(epoch FROM next_refresh_at - now())::float AS seconds "
                "FROM tokenfleet.refresh_schedule WHERE account_id = :id"
            ),
            {"id": account_id},
        ).one()
    return row.probing, row.seconds
