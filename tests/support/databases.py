"""Where the servers of the tests keep their files, and how a test gets a database of its own.

Cloning a database copies three hundred small files. On a disk that was the most expensive thing that most tests did
(0.4 s of CPU, and as long again waiting for the disk); in memory it costs a twentieth. No test asks these servers to
outlive the machine, so they lie in memory where there is room.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from embedded.environment import HOME_VARIABLE
from embedded.exclusive import is_owned

MEMORY = Path("/dev/shm")
ROOM_BYTES = 400 << 20
"""What the servers of one process of tests may need, WAL and all. A container often has no more than 64 MB here."""
ABANDONED_SECONDS = 600.0
_PREFIX = "tokenfleet-servers-"


@contextmanager
def home_of_servers(on_disk: Path) -> Iterator[Path]:
    """Yield an empty directory for servers: one in memory that goes with the block, or else ``on_disk``."""
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < ROOM_BYTES * processes:
        yield on_disk
        return
    _remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=MEMORY) as home:
        yield Path(home)


@contextmanager
def cloned_database(servers: Mapping[str, str], template: str) -> Iterator[str]:
    """Yield the URL of a copy of the database ``template`` that goes with the block."""
    name = f"tokenfleet_test_{uuid.uuid4().hex[:12]}"
    server = make_url(servers["TOKENFLEET_DATABASE_URL"])
    # Copying files is the cheaper way in memory only.
    in_memory = Path(servers[HOME_VARIABLE]).is_relative_to(MEMORY)
    strategy = "FILE_COPY" if in_memory else "WAL_LOG"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy}"))
    yield server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


def make_logins_cheap(database_url: str) -> None:
    """Let the server of a test run derive its role's key in one round instead of 4,096.

    Every process and test connects several times, and each client would spend 5 ms of CPU on it.
    """
    password = make_url(database_url).password
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL scram_iterations = 1"))
        role = connection.execute(
            text("SELECT quote_ident(current_user), quote_literal(:password)"), {"password": password}
        ).one()
        connection.exec_driver_sql(f"ALTER ROLE {role[0]} PASSWORD {role[1]}")
    engine.dispose()


def _remove_abandoned() -> None:
    """Remove what a killed test run has left; nobody else gives that memory back."""
    for home in MEMORY.glob(f"{_PREFIX}*"):
        # Somebody else's, or gone meanwhile.
        with suppress(OSError):
            status = home.stat()
            old = time.time() - status.st_mtime > ABANDONED_SECONDS
            if old and status.st_uid == os.geteuid() and not is_owned(home):
                shutil.rmtree(home, ignore_errors=True)
