"""The fleet that teams write first: one Celery task per account, a redis-py lock, synchronous httpx.

It is written fairly: connections and the HTTP client are pooled and reused, the lock outlives the call, the
update is one statement. It rotates, and it loses tokens when killed, but that is not what is measured here.

Environment: NAIVE_DATABASE, NAIVE_REDIS, NAIVE_ENDPOINT.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import Any, Final

import httpx
import psycopg
from celery import Celery
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from redis import Redis

KEY: Final = bytes(32)
_own = threading.local()
app = Celery("naive", broker=os.environ.get("NAIVE_REDIS"))
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=4,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)


def _postgres() -> psycopg.Connection[Any]:
    """Return this thread's connection."""
    connection: psycopg.Connection[Any] | None = getattr(_own, "connection", None)
    if connection is None:
        connection = _own.connection = psycopg.connect(os.environ["NAIVE_DATABASE"], autocommit=True)
    return connection


@functools.cache
def _redis() -> Redis:
    return Redis.from_url(os.environ["NAIVE_REDIS"])


@functools.cache
def _http() -> httpx.Client:
    return httpx.Client(limits=httpx.Limits(max_connections=200, max_keepalive_connections=200))


@app.task(name="naive.refresh")
def refresh(account: int) -> None:
    """Refresh one account under its lock."""
    with _redis().lock(f"naive:{account}", timeout=60):
        row = _postgres().execute("SELECT refresh_token FROM floor WHERE id = %s", [account]).fetchone()
        assert row is not None
        cipher = AESGCM(KEY)
        token = cipher.decrypt(row[0][:12], row[0][12:], None).decode()
        form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "bench"}
        answer = _http().post(os.environ["NAIVE_ENDPOINT"], data=form).json()
        nonce, second = os.urandom(12), os.urandom(12)
        _postgres().execute(
            "UPDATE floor SET access_token = %s, refresh_token = %s, "
            "expires_at = now() + %s * interval '1 second' WHERE id = %s",
            [
                nonce + cipher.encrypt(nonce, answer["access_token"].encode(), None),
                second + cipher.encrypt(second, answer["refresh_token"].encode(), None),
                answer["expires_in"],
                account,
            ],
        )
