"""Every check that ``tokenfleet doctor`` runs, each with a verdict and a sentence that says what to do.

Checks go from the ground up. One whose ground is missing is skipped and says so, instead of failing for a
reason that was told already.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import DBAPIError

from cli.check import Check, Verdict
from cli.gates import Word, findings
from cli.output import counted
from cli.probes import broker_problem, circuits, journals, redis_problem, ring_problem
from cli.session import bare_database, load_providers, load_settings
from cli.webhook_checks import webhook_checks
from store import audit, overview, privileges
from store.engine import check_ready
from store.keys import load_wrapped
from store.unsealing_spikes import open_spikes
from tokenfleet.errors import DefinitionError, SettingsError, UserError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from providers import Registry
    from tokenfleet.settings import Settings

_ADVICE: Final = {
    Word.CIRCUIT: ". There is nothing to do here: it closes by itself",
    Word.PAUSED: ": lower rate.requests_per_second in its definition if that happens often",
}
LITTLE_SPACE_BYTES: Final = 256 * 1024 * 1024


def examine() -> Iterator[Check]:
    """Run every check, from settings to accounts."""
    try:
        settings = load_settings()
    except SettingsError as error:
        for problem in error.problems:
            yield Check("settings", Verdict.FATAL, problem)
        yield Check("everything else", Verdict.SKIPPED, "needs usable settings")
        return
    described = settings.describe()
    told = ", ".join(f"{name} {described[name]}" for name in ("database", "redis", "home"))
    yield Check("settings", Verdict.OK, told)
    yield _redis(settings)
    yield _verdict("broker", broker_problem(settings), ok="answers")
    yield from _journal(settings.journal_dir)
    registry = None
    try:
        registry = load_providers(settings)
        yield Check("providers", Verdict.OK, f"{counted(len(registry), 'definition')} without mistakes")
    except DefinitionError as error:
        for problem in error.problems:
            yield Check("providers", Verdict.FATAL, problem)
    with bare_database(settings) as engine:
        yield from _database(engine, settings, registry)


def _verdict(name: str, problem: str | None, *, ok: str, otherwise: Verdict = Verdict.FATAL) -> Check:
    return Check(name, Verdict.OK, ok) if problem is None else Check(name, otherwise, problem)


def _redis(settings: Settings) -> Check:
    # Fatal: the fleet survives without Redis, but no worker starts without it.
    return _verdict("redis", redis_problem(settings), ok="answers")


def _journal(root: Path) -> Iterator[Check]:
    """A worker must be able to write here before it asks anybody."""
    ground = next(path for path in (root, *root.parents) if path.exists())
    try:
        if ground == root:
            with tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-") as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
        elif not os.access(ground, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
        free = os.statvfs(ground)
    except OSError as error:
        yield Check(
            "journal",
            Verdict.FATAL,
            f"{root} cannot be written ({error.strerror}): free space, let this user write there, or point "
            "TOKENFLEET_JOURNAL_DIR elsewhere",
        )
        return
    bytes_free = free.f_bavail * free.f_frsize
    if bytes_free < LITTLE_SPACE_BYTES:
        megabytes = bytes_free // 2**20
        yield Check("journal", Verdict.WARNING, f"only {megabytes} MiB are free at {root}: free some")
    else:
        yield Check("journal", Verdict.OK, f"{root} can be written")
    found = journals(root) or ()
    if abandoned := [journal for journal in found if journal.abandoned]:
        yield Check(
            "journal",
            Verdict.WARNING,
            f"answers of {counted(len(abandoned), 'dead worker')} wait on this machine: start a worker here, "
            "it saves them first",
        )
    if any(journal.damaged for journal in found):
        where = root / "damaged"
        yield Check("journal", Verdict.WARNING, f"unreadable segments were kept in {where}: look at them")


def _database(engine: Engine, settings: Settings, registry: Registry | None) -> Iterator[Check]:
    try:
        check_ready(engine, max_clock_skew=timedelta.max)
    except UserError as error:
        yield Check("postgres", Verdict.FATAL, str(error))
        yield Check("clock, keys, apps, fleet", Verdict.SKIPPED, "needs a database with the current schema")
        return
    yield Check("postgres", Verdict.OK, "answers, and its schema is the one this release needs")
    limit = timedelta(seconds=settings.tunables.max_clock_skew_seconds)
    try:
        check_ready(engine, max_clock_skew=limit)
        yield Check("clock", Verdict.OK, "agrees with the database's")
    except UserError as error:
        yield Check("clock", Verdict.FATAL, str(error))
    with engine.connect() as connection:
        problem = privileges.problem(connection)
    if problem is not None:
        yield Check("rights", Verdict.FATAL, problem)
        yield Check("keys, apps, fleet", Verdict.SKIPPED, "needs a role that may read them")
        return
    try:
        yield from _contents(engine, settings, registry)
    except DBAPIError as error:
        from cli.failures import sentences_for

        sentences = sentences_for(error)
        if sentences is None:
            raise
        yield Check("postgres", Verdict.FATAL, " ".join(sentences))


def _contents(engine: Engine, settings: Settings, registry: Registry | None) -> Iterator[Check]:
    with engine.connect() as connection:
        wrapped = load_wrapped(connection)
        fleet = overview.read_overview(connection)
        lifted = audit.can_be_lifted(connection)
        spikes = open_spikes(connection)
    told = "; this role owns it and could lift that: deploy/postgres/roles.sql" if lifted else ""
    yield Check("audit", Verdict.OK, f"operators' actions are kept append-only{told}")
    for spike in spikes:
        yield Check(
            "unsealings",
            Verdict.WARNING,
            f"{spike.sentence}: 'tokenfleet audit unsealings' shows who; docs/keys.md says what to do",
        )
    if not spikes:
        yield Check("unsealings", Verdict.OK, "no more sealed values are opened than is explained or usual")
    for ring in (settings.access_ring, settings.refresh_ring):
        held = any(key.ring is ring.ring for key in wrapped)
        ok = "opens" if held else "is empty so far; 'tokenfleet db upgrade' makes its first data key"
        yield _verdict(f"{ring.ring.value} keys", ring_problem(ring, wrapped), ok=f"the ring {ok}")
    if not fleet.apps:
        yield Check(
            "apps",
            Verdict.WARNING,
            "none is registered: 'tokenfleet apps set PROVIDER --client-id ID' does it",
        )
    opened = {
        each.app_id: each for each in circuits(settings, [app.app_id for app in fleet.apps], fleet.at) or ()
    }
    ready = 0
    for app in fleet.apps:
        name = f"{app.provider}/{app.environment}/{app.name}"
        if registry is not None and app.provider not in registry:
            yield Check(
                "apps",
                Verdict.FATAL,
                f"{name} has no provider definition here: set TOKENFLEET_PROVIDERS_DIR to where it is",
            )
            continue
        found = findings(app, opened.get(app.app_id), fleet.at)
        for finding in found:
            verdict = Verdict.FATAL if finding.word is Word.HELD else Verdict.WARNING
            yield Check("apps", verdict, f"{name}: {finding.text}{_ADVICE.get(finding.word, '')}")
        ready += not found
    if ready:
        yield Check("apps", Verdict.OK, f"{counted(ready, 'app')} ready")
    yield from _fleet(fleet)
    yield from webhook_checks(fleet.webhooks, fleet.at)


def _fleet(fleet: overview.Overview) -> Iterator[Check]:
    for count, role in ((fleet.processes.schedulers, "scheduler"), (fleet.processes.workers, "worker")):
        if count:
            yield Check(f"{role}s", Verdict.OK, f"{counted(count, role)} connected")
        else:
            yield Check(
                f"{role}s", Verdict.WARNING, f"none is connected to this database: start 'tokenfleet {role}'"
            )
    if fleet.failing.quarantined:
        yield Check(
            "accounts",
            Verdict.WARNING,
            f"{counted(fleet.failing.quarantined, 'account')} in quarantine, which neither repetition nor the customer "
            "can mend: 'tokenfleet accounts list --trouble quarantined' says which, 'accounts refresh ID' tries again "
            "once it is mended",
        )
    if fleet.failing.suspects:
        yield Check(
            "accounts",
            Verdict.WARNING,
            f"{counted(fleet.failing.suspects, 'account')} answered in a way that nobody has described: "
            "'tokenfleet providers unknowns' lists the answers and the rules to add",
        )
    if fleet.expiry.expired:
        yield Check(
            "accounts",
            Verdict.WARNING,
            f"at least {counted(fleet.expiry.expired, 'active account')} with an expired access token: "
            "'tokenfleet status' shows what is due and what fails",
        )
    if not fleet.failing.quarantined and not fleet.expiry.expired:
        yield Check("accounts", Verdict.OK, "none in quarantine, none with an expired token")
