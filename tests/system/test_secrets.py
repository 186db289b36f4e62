"""No token and no secret anywhere but where it belongs (G6), whatever goes wrong.

Every token of the sandbox begins with a prefix of its own, so the prefixes are the sentinels; each is looked for
as text, in hexadecimal and in base64.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import psutil
import pytest
from click.testing import CliRunner
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from cli.main import root
from sandbox.config import SandboxConfig
from sandbox.definition import definition_toml
from sandbox.faults import FaultKind, FaultRule
from sandbox.selection import Stage
from sandbox.tokens import ACCESS_TOKEN_PREFIX, REFRESH_TOKEN_PREFIX
from store.journal import Journal, segments
from tests.support.altering_proxy import AlteringProxy
from tests.support.builders import answer
from tests.support.fleet import Fleet, eventually
from tests.support.post_office import Office
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Processes
from tests.support.sentinels import leaks
from tests.support.webhook_receiver import Answer, Receiver
from tokenfleet.jobs import REFRESH_QUEUE, REFRESH_TASK, AccountId
from tokenfleet_client.secret import Secret

CLIENT_SECRET = "sentinel-of-the-client-secret"
WRONG_SECRET = "sentinel-of-a-wrong-client-secret"
FAULTS = (
    FaultKind.STATUS_500,
    FaultKind.HTML_403,
    FaultKind.INVALID_GRANT,
    FaultKind.ERROR_IN_200,
    FaultKind.GARBAGE_JSON,
    FaultKind.HALF_ANSWER,
    FaultKind.RESET_BEFORE,
    FaultKind.RESET_AFTER,
    FaultKind.MISSING_REFRESH_TOKEN,
    FaultKind.MISSING_EXPIRES_IN,
)


@pytest.fixture
def sandbox_config() -> SandboxConfig:
    return SandboxConfig(client_secret=Secret(CLIENT_SECRET))


@contextmanager
def listening_in(url: str) -> Iterator[list[bytes]]:
    """Collect every command that anybody sends to Redis until the block ends."""
    heard: list[bytes] = []
    # However long nobody says anything: processes take their time to start.
    with Redis.from_url(url, socket_timeout=None) as redis, redis.monitor() as monitor:

        def listen() -> None:
            try:
                for command in monitor.listen():
                    heard.append(json.dumps(command).encode())
                    if "the end of the test" in command["command"]:
                        return
            except (RedisError, OSError, ValueError):
                heard.append(b"interrupted")

        thread = threading.Thread(target=listen, name="monitor")
        thread.start()
        try:
            yield heard
        finally:
            redis.echo("the end of the test")
            thread.join(10)
    assert b"interrupted" not in heard


def rows(fleet: Fleet) -> dict[str, bytes]:
    """Return every row of every table and view of ours as text, bytes in hexadecimal."""
    tables = fleet.column(
        "SELECT format('%I.%I', table_schema, table_name) FROM information_schema.tables "
        "WHERE table_schema LIKE 'tokenfleet%'"
    )
    return {
        f"table {table}": "\n".join(fleet.column(f"SELECT t::text FROM {table} t")).encode()
        for table in tables
    }


def values(redis: Redis) -> dict[str, bytes]:
    """Return every key and value of Redis."""
    readers: dict[str, Any] = {
        "string": redis.get,
        "list": lambda key: redis.lrange(key, 0, -1),
        "hash": redis.hgetall,
        "set": redis.smembers,
        "zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
    }
    found: dict[str, bytes] = {}
    for key in redis.scan_iter():
        kind: Any = redis.type(key)
        if kind == b"none":
            # It has expired meanwhile.
            continue
        found[f"Redis key {key!r}"] = repr(readers[kind.decode()](key)).encode()
    return found


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_a_sentinel_is_found_however_it_is_spelled(before: str) -> None:
    around = f"{before}{REFRESH_TOKEN_PREFIX}0_0_0123456789".encode()
    packed = (base64.b64encode(around), base64.urlsafe_b64encode(around))
    for content in (
        around,
        around.hex().encode(),
        around.hex().upper().encode(),
        *packed,
        quote(around).encode(),
    ):
        assert leaks({"it": REFRESH_TOKEN_PREFIX}, {"there": b"..." + content + b"..."}) == ["it in there"]


@contextmanager
def watching_queries(fleet: Fleet) -> Iterator[set[str]]:
    """Collect the text of every statement that is seen at work in Postgres until the block ends."""
    seen: set[str] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            # The test ends everybody's connections once.
            with suppress(DBAPIError):
                seen.update(
                    fleet.column("SELECT query FROM pg_stat_activity WHERE datname = current_database()")
                )

    thread = threading.Thread(target=watch, name="queries")
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join(10)


@contextmanager
def talkative_postgres(fleet: Fleet, log: Path) -> Iterator[list[bytes]]:
    """Let Postgres log every statement with all that is bound to it; the block's end puts the log into the list."""
    name = fleet.engine.url.database
    told = (
        "log_min_duration_statement = 0",
        "log_parameter_max_length = -1",
        "log_parameter_max_length_on_error = -1",
    )
    with fleet.engine.begin() as connection:
        for setting in told:
            connection.execute(text(f"ALTER DATABASE {name} SET {setting}"))
    begins, written = log.stat().st_size, list[bytes]()
    yield written
    with log.open("rb") as file:
        file.seek(begins)
        written.append(file.read())


def echo(body: bytes) -> tuple[int, bytes]:
    """Answer as a careless provider does: with all that it was sent, everywhere."""
    sent = dict(parse_qsl(body.decode()))
    token, secret = sent["refresh_token"], sent["client_secret"]
    document = {"error": token, "error_description": f"{secret}: {token}", token: secret, "request": sent}
    return 400, json.dumps(document).encode()


def damage_a_journal(fleet: Fleet) -> None:
    """Leave the journal of a dead process with a record that breaks off."""
    journal = Journal(fleet.settings.journal_dir, "dead")
    [account_id] = fleet.connect("journalled")
    journal.append(
        answer(fleet.vault, account_id, epoch=1, generation=1, refresh_token=f"{REFRESH_TOKEN_PREFIX}1")
    )
    journal.append(
        answer(fleet.vault, account_id, epoch=2, generation=2, access_token=f"{ACCESS_TOKEN_PREFIX}1")
    )
    [segment] = segments(journal.directory)
    assert journal._lock is not None
    os.close(journal._lock)
    os.close(journal._descriptor)
    segment.write_bytes(segment.read_bytes()[:-20])


def refuse_to_save(fleet: Fleet, account_id: AccountId) -> None:
    """Let Postgres refuse this account's next tokens: its error quotes the whole row."""
    with fleet.engine.begin() as connection:
        connection.execute(
            text(
                "ALTER TABLE tokenfleet.token_sets ADD CONSTRAINT odd "
                f"CHECK (account_id <> {int(account_id)} OR generation < 3) NOT VALID"
            )
        )


COMMANDS = (
    "doctor",
    "doctor --json",
    "status --json",
    "apps list --json",
    "apps show sandbox --json",
    "accounts list --json",
    "accounts show 1 --json",
    "accounts history 1 --json",
    "keys status --json",
    "providers show sandbox --json",
    "db check",
    "webhooks list",
    "webhooks list --json",
    "webhooks deliveries --attempts --json",
)


def printouts(environ: dict[str, str]) -> dict[str, bytes]:
    """Return what the commands that look at a fleet print."""
    printed: dict[str, bytes] = {}
    for words in COMMANDS:
        ran = CliRunner().invoke(root, words.split(), env=environ, prog_name="tokenfleet")
        assert ran.exit_code in {0, 1}, (words, ran.output)
        assert ran.exc_info is None or ran.exc_info[0] is SystemExit, (words, ran.output)
        printed[f"tokenfleet {words}"] = ran.output_bytes
    return printed


@pytest.fixture
def proxy(fleet: Fleet, environ: dict[str, str]) -> Iterator[AlteringProxy]:
    """The only way to the sandbox that the processes know."""
    with AlteringProxy(fleet.server.url) as proxy:
        definition = Path(environ["TOKENFLEET_PROVIDERS_DIR"], "sandbox.toml")
        definition.write_text(definition_toml(proxy.url, fleet.server.config))
        yield proxy


def test_no_secret_surfaces_anywhere(
    fleet: Fleet,
    proxy: AlteringProxy,
    run: Processes,
    redis_url: str,
    servers: dict[str, str],
    environ: dict[str, str],
    office: Office,
    receiver: Receiver,
) -> None:
    home = Path(environ["TOKENFLEET_HOME"])
    keys = json.loads((home / "keys.json").read_text())
    sentinels = {
        "an access token": ACCESS_TOKEN_PREFIX,
        "a refresh token": REFRESH_TOKEN_PREFIX,
        "the client secret": CLIENT_SECRET,
        "a wrong client secret": WRONG_SECRET,
        "the access ring's key": keys["access"][0].partition(":")[2],
        "the refresh ring's key": keys["refresh"][0].partition(":")[2],
    }
    passwords = {
        "the password of Postgres": urlsplit(servers["TOKENFLEET_DATABASE_URL"]).password or "no password",
        "the password of Redis": urlsplit(redis_url).password or "no password",
    }
    found: dict[str, bytes] = {}
    postgres_log = Path(servers["TOKENFLEET_HOME"], "logs", "postgres.log")
    with (
        talkative_postgres(fleet, postgres_log) as logged,
        watching_queries(fleet) as queries,
        listening_in(redis_url) as heard,
        Redis.from_url(redis_url) as redis,
    ):
        damage_a_journal(fleet)
        endpoint = office.add(receiver.url)
        sentinels["the secret of a webhook"] = office.secrets[endpoint].reveal().removeprefix("whsec_")
        members = run.fleet(
            SCHEDULER, WORKER, log_level="debug", allow_private_webhooks="true", **SHORT_LADDER
        )
        for kind in FAULTS:
            fleet.server.add_faults(FaultRule(kind=kind, prefix=kind))
        ids = fleet.connect("well", "moved", "echoed", "refused", *FAULTS)
        assert fleet.row(ids[0]).refresh_token.startswith(REFRESH_TOKEN_PREFIX)
        assert fleet.row(ids[0]).access_token.startswith(ACCESS_TOKEN_PREFIX)
        eventually(lambda: all(fleet.events(account_id) for account_id in ids), what="each met its fault")
        with fleet.engine.begin() as connection:
            connection.execute(
                text(
                    "UPDATE tokenfleet.token_sets SET refresh_token = ("
                    "SELECT refresh_token FROM tokenfleet.token_sets WHERE account_id = :well) "
                    "WHERE account_id = :moved"
                ),
                {"well": ids[0], "moved": ids[1]},
            )
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        fleet.make_due(ids[1])
        eventually(lambda: "refresh.our_fault" in fleet.events(ids[1]), what="it cannot be opened")
        refuse_to_save(fleet, ids[3])
        fleet.make_due(ids[3])
        eventually(lambda: "refresh.our_fault" in fleet.events(ids[3]), what="it cannot be saved")
        proxy.answer = echo
        fleet.make_due(ids[2])
        eventually(lambda: "refresh.undescribed" in fleet.events(ids[2]), what="all that was sent is echoed")
        proxy.answer = None
        receiver.answer = lambda request: Answer(500, (("X-Echo", request.headers["webhook-signature"]),))
        office.tell(ids[0])
        eventually(lambda: len(receiver.received) > 1, what="webhooks were sent")
        fleet.register(Secret(WRONG_SECRET))
        fleet.make_due(ids[0])
        eventually(lambda: fleet.current_app().held_since is not None, what="the app is held")
        found |= values(redis)
        for member in members:
            name = member.log.stem
            found[f"/metrics of {name}"] = member.get("/metrics")[1]
            process = psutil.Process(member.process.pid)
            for each in (process, *process.children(recursive=True)):
                found[f"arguments of {name}, {each.pid}"] = " ".join(each.cmdline()).encode()
                environment = json.dumps(each.environ()).encode()
                # Its URLs are what the process is told; whoever runs it may keep them in files instead.
                assert leaks(sentinels, {f"environment of {name}": environment}) == []
            assert member.stop() == 0
            found[f"log of {name}"] = member.log.read_bytes()
        fleet.make_due(*ids)
        fleet.publish(fleet.claim())
        found |= values(redis)
        found |= printouts(environ)
    found["what went through Redis"] = b"\n".join(heard)
    found["statements at work"] = "\n".join(queries).encode()
    found["log of Postgres"] = b"".join(logged)
    found["printed settings"] = f"{fleet.settings!r} {fleet.settings.describe()}".encode()
    found |= rows(fleet)
    for file in home.rglob("*"):
        if file.is_file() and file.name != "keys.json":
            found[str(file)] = file.read_bytes()
    found["log of Valkey"] = Path(servers["TOKENFLEET_HOME"], "logs", "valkey.log").read_bytes()
    # A dump in which our own traces are missing would prove nothing.
    assert REFRESH_TASK.encode() in found["what went through Redis"]
    assert f"Redis key {REFRESH_QUEUE.encode()!r}" in found
    assert b"tokenfleet_refreshes_total" in found["/metrics of 1-worker"]
    assert b"account.quarantined" in found["log of 1-worker"]
    assert b"journal.damaged" in found["log of 1-worker"]
    assert b"record.refused" in found["log of 1-worker"]
    assert b"authentication_error" in found["table tokenfleet.outbox"]
    assert b"http_500" in found["table tokenfleet.webhook_attempts"]
    assert receiver.url.encode() in found["tokenfleet webhooks list"]
    assert b"UPDATE tokenfleet.token_sets" in found["log of Postgres"]
    assert b"Failing row contains" in found["log of Postgres"]
    [sealed] = fleet.column(
        "SELECT refresh_token FROM tokenfleet.token_sets WHERE account_id = :id", id=ids[0]
    )
    assert sealed.hex().encode() in found["log of Postgres"], "bound values are logged, and sealed"
    assert b"tokenfleet.refresh_schedule" in found["statements at work"]
    assert b"sandbox" in found["tokenfleet apps list --json"]
    # And a search that finds nothing where everything is would prove nothing.
    everything = {
        "the proxy": b"\n".join(proxy.seen),
        "the key file": (home / "keys.json").read_bytes(),
        "the command that added it": sentinels["the secret of a webhook"].encode(),
    }
    assert {leak.partition(" in ")[0] for leak in leaks(sentinels, everything)} == set(sentinels)
    assert leaks(sentinels, found) == []
    ours = {place: content for place, content in found.items() if not place.startswith("table")}
    assert leaks(passwords, ours) == []


def test_a_crash_dump_shows_no_secret(fleet: Fleet, run: Processes, redis_url: str) -> None:
    """Python's own dump of every thread, in the middle of requests whose tokens are in memory."""
    run.environ["PYTHONFAULTHANDLER"] = "1"
    [worker] = run.fleet(WORKER, log_level="debug")
    fleet.connect("first", "second")
    with fleet.server.hold(stage=Stage.AFTER_DECIDING):
        fleet.publish(fleet.claim())
        fleet.server.wait_for_held(2)
        worker.process.send_signal(signal.SIGABRT)
        assert worker.wait() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in worker.text()
    assert "Thread 0x" in worker.text()
    sentinels = {
        "an access token": ACCESS_TOKEN_PREFIX,
        "a refresh token": REFRESH_TOKEN_PREFIX,
        "the client secret": CLIENT_SECRET,
    }
    assert leaks(sentinels, {"the crash dump": worker.log.read_bytes()}) == []
