"""How a worker's parts are put together that perform refreshes: one place for the engine, and for tests that take its
place."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from providers import Registry
from store.journal import Journal
from store.keys import Vault
from store.leases import Leases
from tokenfleet.settings import Settings, Tunables
from workers.attempt import Asker
from workers.candidates import Candidates
from workers.flushing import Flusher
from workers.governor import Governor
from workers.judging import Judge
from workers.keeping import Keeper
from workers.key_renewal import KeyRenewal
from workers.probing import Prober
from workers.refresh import Refresher, reserve_seconds
from workers.reputation import Reputation
from workers.revoke import Revoker
from workers.sealing import Sealer
from workers.steps import Stepper
from workers.takeover import Consult, Lookout
from workers.writer import GroupWriter


def compose_refresher(
    settings: Settings,
    tunables: Tunables,
    *,
    engine: AsyncEngine,
    registry: Registry,
    vault: Vault,
    leases: Leases,
    journal: Journal,
    flusher: Flusher,
    writer: GroupWriter,
    candidates: Candidates,
    governor: Governor,
    owner: str,
    consult: Consult,
) -> Refresher:
    """Return what runs jobs; all that is given is open."""
    judge, reputation, sealer = Judge(), Reputation(), Sealer(vault)
    keeper = Keeper(journal, writer, flusher, reputation)
    stepper = Stepper(sealer, keeper, judge, governor)
    prober = Prober(
        engine,
        governor,
        vault,
        writer,
        judge,
        reputation,
        owner=owner,
        claim=timedelta(seconds=tunables.claim_seconds),
        reserve_seconds=reserve_seconds(tunables),
    )
    return Refresher(
        engine,
        registry,
        vault,
        leases,
        Asker(sealer, keeper, judge, candidates, governor, stepper),
        writer,
        journal,
        governor,
        owner=owner,
        tunables=tunables,
        lookout=Lookout(engine, consult),
        key_renewal=KeyRenewal(engine, settings, vault),
        prober=prober,
        revoker=Revoker(engine, governor, vault, writer),
    )
