"""No token and no secret anywhere but where it belongs (G6), whatever goes wrong.

Every token of the sandbox begins with a prefix of its own, so the prefixes are the sentinels; each is looked for
as text, in hexadecimal and in base64.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pytest
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import text

from sandbox.config import SandboxConfig
from sandbox.faults import FaultKind, FaultRule
from sandbox.tokens import ACCESS_TOKEN_PREFIX, REFRESH_TOKEN_PREFIX
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Processes
from tokenfleet.jobs import REFRESH_QUEUE, REFRESH_TASK
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


def spellings(sentinel: str) -> Iterator[bytes]:
    """Yield the ways in which ``sentinel`` may stand somewhere inside of something else."""
    raw = sentinel.encode()
    yield raw
    yield quote(sentinel, safe="").encode()
    yield raw.hex().encode()
    for offset in range(3):
        # What precedes shifts the letters of base64, and the last ones depend on what follows.
        yield base64.b64encode(bytes(offset) + raw)[offset + (offset > 0) : -4]


def leaks(sentinels: dict[str, str], found: dict[str, bytes]) -> list[str]:
    """Return which sentinel stands where."""
    return [
        f"{name} in {place}"
        for name, sentinel in sentinels.items()
        for place, content in found.items()
        if any(spelling in content for spelling in spellings(sentinel))
    ]


@contextmanager
def listening_in(url: str) -> Iterator[list[bytes]]:
    """Collect every command that anybody sends to Redis until the block ends."""
    heard: list[bytes] = []
    with Redis.from_url(url) as redis, redis.monitor() as monitor:

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
        found[f"Redis key {key!r}"] = repr(readers[kind.decode()](key)).encode()
    return found


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
def test_a_sentinel_is_found_however_it_is_spelled(before: str) -> None:
    around = f"{before}{REFRESH_TOKEN_PREFIX}0_0_0123456789".encode()
    for content in (around, around.hex().encode(), base64.b64encode(around), quote(around).encode()):
        assert leaks({"it": REFRESH_TOKEN_PREFIX}, {"there": b"..." + content + b"..."}) == ["it in there"]


def test_no_secret_surfaces_anywhere(
    fleet: Fleet, run: Processes, redis_url: str, servers: dict[str, str], environ: dict[str, str]
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
    with listening_in(redis_url) as heard, Redis.from_url(redis_url) as redis:
        members = run.fleet(SCHEDULER, WORKER, log_level="debug", **SHORT_LADDER)
        for kind in FAULTS:
            fleet.server.add_faults(FaultRule(kind=kind, prefix=kind))
        ids = fleet.connect("well", "moved", *FAULTS)
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
            assert member.stop() == 0
            found[f"log of {name}"] = member.log.read_bytes()
        fleet.make_due(*ids)
        fleet.publish(fleet.claim())
        found |= values(redis)
    found["what went through Redis"] = b"\n".join(heard)
    found |= rows(fleet)
    for file in home.rglob("*"):
        if file.is_file() and file.name != "keys.json":
            found[str(file)] = file.read_bytes()
    for file in Path(servers["TOKENFLEET_HOME"], "logs").glob("*.log"):
        found[str(file)] = file.read_bytes()
    # A dump in which our own traces are missing would prove nothing.
    assert REFRESH_TASK.encode() in found["what went through Redis"]
    assert f"Redis key {REFRESH_QUEUE.encode()!r}" in found
    assert b"tokenfleet_refreshes_total" in found["/metrics of 1-worker"]
    assert b"account.quarantined" in found["log of 1-worker"]
    assert b"authentication_error" in found["table tokenfleet.outbox"]
    assert leaks(sentinels, found) == []
    ours = {place: content for place, content in found.items() if not place.startswith("table")}
    assert leaks(passwords, ours) == []
