"""A storm of transitions: processes that compete to move the same accounts, and a judge that reads what was told of it.

    .venv/bin/python -m drills.transitions [--transitions 100000] [--processes 8] [--accounts 2000] [--seed N]

Every process is a worker that claims, is answered and writes, and an operator who pauses, resumes, revokes, signs
customers in anew and asks for refreshes, all through the real code of the store, against a Postgres of its own (or the
one of TOKENFLEET_DATABASE_URL, which has to be empty). Half of what they do meets the same few accounts. One more
process relays the events and delivers them. Exit code 0 only if each move was told once and in its turn, and each
account stands where its history ends; 1 if not; 2 for arguments that cannot be.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Final

from sqlalchemy import Engine, text

from chaos.command import make_parser, whole
from cli.bootstrap import prepare_database
from cli.up import stopped_by_signal
from drills.transition_actors import PROVIDER, Ledger, Operator, Relay, Worker
from drills.transition_verdict import Verdict, judge, read
from embedded.environment import Environment
from store import apps, endpoints, keys
from store.engine import make_engine
from tokenfleet.errors import UserError
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.settings import Settings
from tokenfleet_client.secret import Secret

HOT: Final = 20
"""Accounts that half of all acts meet."""
HOT_AT_ONCE: Final = 8
AT_ONCE: Final = 64
"""Accounts that one act names at most: of those few, and of all."""
CLAIM: Final = timedelta(milliseconds=400)
"""So short that attempts outlive their claims: the answers of those come late, when others have asked anew."""
PATIENCE_SECONDS: Final = 120.0
"""A process that has moved nobody for so long gives up."""
ACTS: Final = ("work", "sign_in", "pause", "resume", "revoke", "forget", "refresh", "look_around")
WEIGHTS: Final = (50, 16, 10, 10, 4, 2, 7, 1)


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a storm takes place: ``accounts`` belong to ``customers``, position by position."""

    settings: Settings
    app_id: AppId
    accounts: tuple[AccountId, ...]
    customers: tuple[str, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Storm:
    """What a storm came to."""

    ledger: Ledger
    verdict: Verdict
    seconds: float
    """From the moment all processes were there to the last move."""


def prepare(settings: Settings, *, accounts: int, seed: int) -> Scene:
    """Register the app and an endpoint for everything, and sign all customers in.

    Raises :class:`UserError` when some are there already.
    """
    engine = make_engine(settings.database_url, application_name="storm")
    with engine.begin() as connection:
        vault = keys.open_vault(connection, settings)
        app_id = apps.register(
            connection,
            vault.refresh,
            provider=PROVIDER,
            environment="production",
            name="default",
            client_id="storm",
            client_secret=Secret("storm"),
            variables={},
        ).app_id
        endpoints.add(connection, vault.refresh, url="https://receiver.example/", concurrency=1000)
    customers = tuple(f"customer-{number}" for number in range(accounts))
    tally = Operator(engine, vault, "operator", seed).sign_in(customers, ())
    if tally.created != accounts:
        raise UserError(
            "TOKENFLEET_DATABASE_URL names a database with accounts in it: give the storm an empty one"
        )
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, external_id FROM tokenfleet.accounts")).all()
    engine.dispose()
    of_customer = {row.external_id: AccountId(row.id) for row in rows}
    return Scene(settings, app_id, tuple(of_customer[each] for each in customers), customers, seed)


def rage(scene: Scene, *, transitions: int, processes: int) -> Storm:
    """Let ``processes`` move accounts ``transitions`` times in all, and judge what is left."""
    context = multiprocessing.get_context("spawn")
    ready, over = context.Barrier(processes + 2), context.Event()
    share = -(-transitions // processes)
    ledger = Ledger()
    with ProcessPoolExecutor(
        processes + 1, mp_context=context, initializer=_enter, initargs=(ready, over)
    ) as pool:
        relaying = pool.submit(_relay, scene)
        moving = [pool.submit(_compete, scene, number, share) for number in range(processes)]
        try:
            ready.wait(PATIENCE_SECONDS)
            began = time.monotonic()
            for each in moving:
                ledger.add(each.result())
            seconds = time.monotonic() - began
        finally:
            over.set()
        ledger.add(relaying.result())
    engine = make_engine(scene.settings.database_url, application_name="storm judge")
    with engine.connect() as connection:
        connection.execute(text("SET statement_timeout = '10min'"))
        verdict = judge(read(connection, ledger=ledger.moves, received=ledger.received))
    engine.dispose()
    return Storm(ledger, verdict, seconds)


_ready: Barrier
_over: Event


def _enter(ready: Barrier, over: Event) -> None:
    """Remember, in a process of the storm, what all of them share."""
    global _ready, _over
    _ready, _over = ready, over


def _compete(scene: Scene, number: int, share: int) -> Ledger:
    """Move accounts until ``share`` moves are done; returns what was done."""
    engines = [_engine(scene, f"storm {number}") for _ in range(2)]
    with engines[0].begin() as connection:
        vault = keys.open_vault(connection, scene.settings)
    seed = scene.seed * 1000 + number
    worker = Worker(engines[0], vault, f"worker-{number}", seed, app_id=scene.app_id, claim=CLAIM)
    operator = Operator(engines[1], vault, f"operator-{number}", seed)
    chance = random.Random(seed)
    _ready.wait(PATIENCE_SECONDS)
    moved, progressed = 0, time.monotonic()
    while moved < share:
        _act(scene, worker, operator, chance)
        now_moved = worker.ledger.moves.total() + operator.ledger.moves.total()
        if now_moved > moved:
            moved, progressed = now_moved, time.monotonic()
        elif time.monotonic() - progressed > PATIENCE_SECONDS:
            raise RuntimeError(f"process {number} has moved nobody for {PATIENCE_SECONDS:.0f} s")
    while worker.in_hand:
        worker.settle(AT_ONCE)
    worker.ledger.add(operator.ledger)
    for engine in engines:
        engine.dispose()
    return worker.ledger


def _act(scene: Scene, worker: Worker, operator: Operator, chance: random.Random) -> None:
    """Do one thing, drawn by chance, to a few accounts."""
    many, most = (HOT, HOT_AT_ONCE) if chance.random() < 0.5 else (len(scene.accounts), AT_ONCE)
    some = chance.sample(range(many), min(chance.randint(1, most), many))
    ids = [scene.accounts[each] for each in some]
    match chance.choices(ACTS, WEIGHTS)[0]:
        case "work":
            if len(worker.in_hand) < AT_ONCE:
                worker.begin(AT_ONCE)
            # Some stay in hand, and are settled late.
            worker.settle(chance.randint(1, AT_ONCE))
        case "sign_in":
            operator.sign_in([scene.customers[each] for each in some], ids)
        case "pause":
            operator.pause(ids)
        case "resume":
            operator.resume(ids)
        case "revoke":
            operator.revoke(ids)
        case "forget":
            operator.revoke(ids, told=False)
        case "refresh":
            operator.refresh(ids)
        case _:
            worker.look_around()


def _relay(scene: Scene) -> Ledger:
    """Relay and deliver until the storm is over and nothing waits."""
    engine = _engine(scene, "storm relay")
    with engine.begin() as connection:
        vault = keys.open_vault(connection, scene.settings)
    relay = Relay(engine, vault, "relay", scene.seed)
    _ready.wait(PATIENCE_SECONDS)
    last = False
    while True:
        if not relay.deliver():
            if last:
                break
            # Once more after the end, so that the last event is not missed.
            last = _over.wait(0.02)
    engine.dispose()
    return relay.ledger


def _engine(scene: Scene, name: str) -> Engine:
    return make_engine(scene.settings.database_url, application_name=name, pool_size=1)


def lines(storm: Storm) -> Iterator[str]:
    """Yield the table, and what is wrong."""
    ledger, verdict = storm.ledger, storm.verdict
    moved = ledger.moves.total()
    rows: Sequence[tuple[str, str]] = (
        ("moves attempted", f"{ledger.attempted:,}"),
        ("moved", f"{moved:,}"),
        ("refused, illegal at that moment", f"{ledger.attempted - moved:,}"),
        ("moves in the history", f"{verdict.moves:,}"),
        ("that do not chain or are illegal", f"{verdict.broken:,}"),
        ("that their authors know otherwise", f"{verdict.unwitnessed:,}"),
        ("events expected", f"{verdict.expected:,}"),
        ("events found", f"{verdict.found:,}"),
        ("events delivered", f"{len(ledger.received):,}"),
        ("missing", f"{verdict.missing:,}"),
        ("double", f"{verdict.double:,}"),
        ("out of order", f"{verdict.out_of_order:,}"),
        ("accounts not where they should be", f"{verdict.misplaced:,}"),
        ("deadlocks, written again", f"{ledger.deadlocks:,}"),
        ("seconds", f"{storm.seconds:.1f}"),
        ("moves/s", f"{moved / storm.seconds:,.0f}"),
    )
    for name, number in rows:
        yield f"{name:<36}{number:>12}"
    yield from verdict.troubles
    yield "holds" if verdict.holds else "DOES NOT HOLD"


def _cannot(error: UserError) -> int:
    print(f"drills.transitions: {error}", file=sys.stderr)
    return 2


def main() -> int:
    """Run and print; returns the exit code."""
    parser = make_parser(
        "drills.transitions", "Move the same accounts from many processes, and judge the events."
    )
    parser.add_argument(
        "--transitions", type=whole(1), default=100_000, metavar="N", help="moves (default: 100000)"
    )
    parser.add_argument("--processes", type=whole(1, 64), default=8, metavar="N", help="(default: 8)")
    parser.add_argument(
        "--accounts", type=whole(1, 1_000_000), default=2000, metavar="N", help="(default: 2000)"
    )
    parser.add_argument(
        "--seed", type=whole(0), metavar="N", help="draw the same acts (default: others each time)"
    )
    arguments = parser.parse_args()
    seed: int = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with (
        stopped_by_signal(),
        tempfile.TemporaryDirectory(prefix="tokenfleet-storm-") as home,
        Environment(Path(home), os.environ) as environment,
    ):
        scene = prepare(
            prepare_database(os.environ | dict(environment.environ())), accounts=arguments.accounts, seed=seed
        )
        storm = rage(scene, transitions=arguments.transitions, processes=arguments.processes)
    for line in lines(storm):
        print(line)
    return 0 if storm.verdict.holds else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(_cannot(error))
