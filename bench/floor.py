"""The least work that still refreshes tokens, in one process: read, decrypt, POST, encrypt, update.

No claim, no lease, no journal, no history, no compare-and-set, no judgement of answers: this is the ground
that the fleet is compared with, not a design. It uses the fastest parts the fleet uses (psycopg in batches,
aiohttp bare, uvloop, AES-GCM).

    python bench/floor.py --database URL --endpoint URL --part 0 --parts 2 --seconds 20
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from typing import Final

import aiohttp
import psycopg
import uvloop
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

BATCH: Final = 100
LANES: Final = 16
KEY: Final = bytes(32)

CREATE: Final = """
    CREATE TABLE floor (id bigint PRIMARY KEY, access_token bytea, refresh_token bytea, expires_at timestamptz)
    WITH (fillfactor = 50)
"""


def seal(plaintext: bytes) -> bytes:
    """Encrypt with a fixed key and a fresh nonce."""
    nonce = os.urandom(12)
    return nonce + AESGCM(KEY).encrypt(nonce, plaintext, None)


async def lane(
    database: str, http: aiohttp.ClientSession, endpoint: str, batches: Iterator[Sequence[int]], until: float
) -> int:
    """Refresh batch after batch until the time is over; returns how many accounts."""
    cipher = AESGCM(KEY)
    done = 0

    async def ask(row: tuple[int, bytes]) -> tuple[int, bytes, bytes, int]:
        account, sealed = row
        token = cipher.decrypt(sealed[:12], sealed[12:], None).decode()
        form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "bench"}
        async with http.post(endpoint, data=form) as response:
            answer = await response.json()
        access = seal(answer["access_token"].encode())
        return account, access, seal(answer["refresh_token"].encode()), answer["expires_in"]

    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        while time.monotonic() < until:
            ids = list(next(batches))
            cursor = await connection.execute("SELECT id, refresh_token FROM floor WHERE id = ANY(%s)", [ids])
            rows = await asyncio.gather(*(ask(row) for row in await cursor.fetchall()))
            columns = [list(column) for column in zip(*rows, strict=True)]
            await connection.execute(
                """
                UPDATE floor f SET access_token = i.access_token, refresh_token = i.refresh_token,
                                   expires_at = now() + i.life * interval '1 second'
                FROM unnest(%s::bigint[], %s::bytea[], %s::bytea[], %s::int[])
                    AS i (id, access_token, refresh_token, life) WHERE f.id = i.id
                """,
                columns,
            )
            done += len(rows)
    return done


async def run(arguments: argparse.Namespace) -> int:
    """Run every lane of this process."""
    ids = range(arguments.part, arguments.accounts, arguments.parts)
    batches = itertools.cycle([ids[index : index + BATCH] for index in range(0, len(ids), BATCH)])
    until = time.monotonic() + arguments.seconds
    connector = aiohttp.TCPConnector(limit=LANES * BATCH)
    async with aiohttp.ClientSession(connector=connector) as http:
        lanes = (lane(arguments.database, http, arguments.endpoint, batches, until) for _ in range(LANES))
        return sum(await asyncio.gather(*lanes))


def main() -> None:
    """Read the arguments, run, print how many accounts were refreshed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--database", required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--accounts", type=int, default=50_000)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=15)
    print(uvloop.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
