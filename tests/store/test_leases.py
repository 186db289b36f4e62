"""Leases against a real server: polite between workers, harmless when Redis loses, repeats or is away."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from store.leases import KEY_PREFIX, Leases
from tests.support.racing import PATIENCE_SECONDS
from tokenfleet.jobs import AccountId

R = TypeVar("R")

ALL = [AccountId(number) for number in range(1, 6)]


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    return asyncio.run(asyncio.wait_for(coroutine, PATIENCE_SECONDS))


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url)
    try:
        yield client
    finally:
        await client.aclose()


def test_a_lease_is_held_by_one_owner_and_others_are_told_which_ones_are_not_theirs(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            leases = Leases(redis, life_seconds=30)
            assert await leases.take(ALL[:3], "first") == frozenset(ALL[:3])
            assert await leases.take(ALL, "second") == frozenset(ALL[3:])
            assert await leases.take(ALL, "third") == frozenset()

    run(scenario())


def test_the_same_command_sent_again_finds_its_own_leases_and_renews_them(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            assert await Leases(redis, life_seconds=5).take(ALL, "owner") == frozenset(ALL)
            assert await Leases(redis, life_seconds=60).take(ALL, "owner") == frozenset(ALL)
            assert await redis.pttl(f"{KEY_PREFIX}{ALL[0]}") > 50_000

    run(scenario())


def test_a_reply_that_is_lost_does_not_lock_the_owner_out(redis_url: str) -> None:
    """redis-py sends the command again over a new connection; the first one had taken the leases."""

    async def scenario() -> None:
        async with connected(redis_url) as redis, lossy_proxy(redis) as (port, lost):
            parts = redis.connection_pool.connection_kwargs
            through = Redis(
                host="127.0.0.1",
                port=port,
                password=parts.get("password"),
                username=parts.get("username"),
                retry=Retry(NoBackoff(), 3),
                retry_on_error=[RedisConnectionError],
            )
            try:
                assert await Leases(through, life_seconds=30).take(ALL, "owner") == frozenset(ALL)
                assert lost, "the reply was not lost, so nothing was tried"
            finally:
                await through.aclose()

    run(scenario())


@contextlib.asynccontextmanager
async def lossy_proxy(redis: Redis) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Forward to the server of ``redis``; hang up in place of the first reply that grants leases."""
    kwargs = redis.connection_pool.connection_kwargs
    lost: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lossy: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if lossy and not lost and data.startswith(b"*5\r\n:1"):
                    lost.append(data)
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(kwargs["host"], kwargs["port"])
        await asyncio.gather(
            pump(reader, upstream_writer, lossy=False), pump(upstream_reader, writer, lossy=True)
        )

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], lost
    finally:
        server.close()


def test_only_the_owner_gives_a_lease_back(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            leases = Leases(redis, life_seconds=30)
            await leases.take(ALL[:2], "first")
            await leases.take(ALL[2:], "second")

            await leases.give_back(ALL, "first")

            assert await leases.take(ALL, "third") == frozenset(ALL[:2])
            await leases.give_back([], "third")

    run(scenario())


def test_an_owner_who_comes_late_does_not_delete_the_lease_of_the_next_one(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            leases = Leases(redis, life_seconds=30)
            await leases.take(ALL, "slow")
            await redis.flushall()
            await leases.take(ALL, "next")

            await leases.give_back(ALL, "slow")

            assert await leases.take(ALL, "third") == frozenset()

    run(scenario())


def test_a_lease_ends_by_itself_when_its_owner_is_gone(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            leases = Leases(redis, life_seconds=30)
            await Leases(redis, life_seconds=0.05).take(ALL, "dead")
            taken = await leases.take(ALL, "next")
            while not taken:
                await asyncio.sleep(0.005)
                taken = await leases.take(ALL, "next")
            assert taken == frozenset(ALL)

    run(scenario())


def test_of_many_that_ask_at_once_each_lease_goes_to_exactly_one(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            leases = Leases(redis, life_seconds=30)
            many = [AccountId(number) for number in range(100)]
            shares = await asyncio.gather(*(leases.take(many, f"owner-{n}") for n in range(8)))
            taken = Counter(account_id for share in shares if share for account_id in share)
            assert taken == Counter(many)

    run(scenario())


def test_a_wiped_redis_forgets_leases_and_scripts_and_nothing_breaks(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            leases = Leases(redis, life_seconds=30)
            await leases.take(ALL, "first")
            await redis.flushall()
            await redis.script_flush()

            assert await leases.take(ALL, "second") == frozenset(ALL)
            await leases.give_back(ALL, "second")

    run(scenario())


def test_without_redis_the_answer_is_none_which_is_not_the_same_as_nobody() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            async with connected(f"redis://127.0.0.1:{taken.getsockname()[1]}/0") as redis:
                leases = Leases(redis, life_seconds=30)
                assert await leases.take(ALL, "owner") is None
                await leases.give_back(ALL, "owner")

    run(scenario())


def test_a_server_that_accepts_and_never_answers_counts_as_away_after_the_timeout() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            client = Redis.from_url(url, socket_timeout=0.05, retry=Retry(NoBackoff(), 0))
            try:
                assert await Leases(client, life_seconds=30).take(ALL, "owner") is None
            finally:
                await client.aclose()

    run(scenario())


def test_no_lease_lives_for_ever(redis_url: str) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            await Leases(redis, life_seconds=26).take(ALL, "owner")
            lives = [await redis.pttl(f"{KEY_PREFIX}{account_id}") for account_id in ALL]
            assert all(0 < life <= 26_000 for life in lives)

    run(scenario())


@pytest.mark.parametrize("asked", [[], [AccountId(2**62)]])
def test_any_number_of_accounts_can_be_asked_for(redis_url: str, asked: list[AccountId]) -> None:
    async def scenario() -> None:
        async with connected(redis_url) as redis:
            assert await Leases(redis, life_seconds=26).take(asked, "owner") == frozenset(asked)

    run(scenario())
