"""``keys generate`` and ``keys status``."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from tests.cli.conftest import Shell
from tokenfleet_client.envelope import KeyEncryptionKey


def _texts(path: Path) -> list[str]:
    return [text for texts in json.loads(path.read_text()).values() for text in texts]


def test_generate_writes_usable_keys_for_the_owner_only_and_never_prints_them(
    tokenfleet: Shell, tmp_path: Path
) -> None:
    home = tmp_path / "new"
    ran = tokenfleet("keys", "generate", TOKENFLEET_HOME=str(home))
    path = home / "keys.json"
    assert ran.exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = json.loads(path.read_text())
    assert list(content) == ["access", "refresh"]
    for text in _texts(path):
        assert KeyEncryptionKey.parse(text).export() == text
        assert text.partition(":")[2] not in ran.stdout
    assert str(path) in ran.stdout
    assert "Back it up" in ran.stdout
    upgraded = tokenfleet("db", "upgrade", TOKENFLEET_HOME=str(home))
    assert "data keys of both rings open" in upgraded.stdout


def test_generate_never_overwrites(tokenfleet: Shell, environ: dict[str, str]) -> None:
    path = Path(environ["TOKENFLEET_HOME"]) / "keys.json"
    before = path.read_bytes()
    ran = tokenfleet("keys", "generate")
    assert ran.exit_code == 1
    assert "never overwritten" in ran.stderr
    assert path.read_bytes() == before


def test_generate_writes_where_the_variable_points(tokenfleet: Shell, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ring.json"
    assert tokenfleet("keys", "generate", TOKENFLEET_KEYS_FILE=str(path)).exit_code == 0
    assert len(_texts(path)) == 2


def test_readers_get_the_access_ring_only(tokenfleet: Shell, tmp_path: Path) -> None:
    both, readers = tmp_path / "keys.json", tmp_path / "readers.json"
    ran = tokenfleet("keys", "generate", "--output", str(both), "--readers", str(readers))
    assert ran.exit_code == 0
    assert json.loads(readers.read_text()) == {"access": json.loads(both.read_text())["access"]}
    assert stat.S_IMODE(readers.stat().st_mode) == 0o600


def test_readers_and_fleet_never_share_a_file(tokenfleet: Shell, tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    assert tokenfleet("keys", "generate", "--output", path, "--readers", path).exit_code == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


def test_nothing_is_written_when_one_of_the_files_exists(tokenfleet: Shell, tmp_path: Path) -> None:
    readers = tmp_path / "readers.json"
    readers.write_text("kept")
    output = tmp_path / "keys.json"
    ran = tokenfleet("keys", "generate", "--output", str(output), "--readers", str(readers))
    assert ran.exit_code == 1
    assert not output.exists()
    assert readers.read_text() == "kept"


def test_a_file_of_readers_that_exists_is_named_and_never_the_key_file(
    tokenfleet: Shell, environ: dict[str, str], tmp_path: Path
) -> None:
    keys, readers = Path(environ["TOKENFLEET_HOME"], "keys.json"), tmp_path / "readers.json"
    readers.write_text("kept")
    ran = tokenfleet("keys", "generate", "--readers", str(readers))
    assert (ran.exit_code, readers.read_text()) == (1, "kept")
    assert f"{readers} exists and is never overwritten" in ran.stderr
    assert f"{keys} exists" not in ran.stderr
    readers.unlink()
    assert tokenfleet("keys", "generate", "--add").exit_code == 0
    assert tokenfleet("keys", "generate", "--readers", str(readers)).exit_code == 0
    assert json.loads(readers.read_text()) == {"access": json.loads(keys.read_text())["access"]}


def test_keys_are_added_to_a_file_that_exists_and_not_made_in_its_place(
    tokenfleet: Shell, tmp_path: Path
) -> None:
    path = tmp_path / "none.json"
    ran = tokenfleet("keys", "generate", "--add", "--output", str(path))
    assert (ran.exit_code, f"there is no key file at {path}" in ran.stderr, path.exists()) == (1, True, False)


def test_a_directory_that_cannot_be_written_is_one_sentence(tokenfleet: Shell) -> None:
    ran = tokenfleet("keys", "generate", "--output", "/proc/nowhere/keys.json")
    assert ran.exit_code == 1
    assert len(ran.stderr.splitlines()) == 1


def test_status_shows_what_opens_here_and_no_key(tokenfleet: Shell, environ: dict[str, str]) -> None:
    tokenfleet("db", "upgrade")
    ran = tokenfleet("keys", "status", "--json")
    assert ran.exit_code == 0
    assert [(key["ring"], key["is_primary"], key["opens"]) for key in ran.document["data_keys"]] == [
        ("access", True, True),
        ("refresh", True, True),
    ]
    shown = ran.stdout + tokenfleet("keys", "status").stdout
    for text in _texts(Path(environ["TOKENFLEET_HOME"]) / "keys.json"):
        assert text.partition(":")[2] not in shown


def test_status_with_foreign_keys_fails_and_names_the_missing_one(tokenfleet: Shell, tmp_path: Path) -> None:
    tokenfleet("db", "upgrade")
    foreign = str(tmp_path / "foreign.json")
    tokenfleet("keys", "generate", "--output", foreign)
    ran = tokenfleet("keys", "status", TOKENFLEET_KEYS_FILE=foreign)
    assert ran.exit_code == 1
    assert "'test' is not configured here" in ran.stdout


def test_status_of_a_reader_needs_its_own_ring_only(
    tokenfleet: Shell, environ: dict[str, str], tmp_path: Path
) -> None:
    tokenfleet("db", "upgrade")
    rings = json.loads((Path(environ["TOKENFLEET_HOME"]) / "keys.json").read_text())
    readers = tmp_path / "readers.json"
    readers.touch(mode=0o600)
    readers.write_text(json.dumps({"access": rings["access"]}))
    ran = tokenfleet("keys", "status", "--json", TOKENFLEET_KEYS_FILE=str(readers))
    assert ran.exit_code == 0
    assert [key["opens"] for key in ran.document["data_keys"]] == [True, False]


def test_a_mistaken_ring_is_told_apart_from_a_missing_one(
    tokenfleet: Shell, environ: dict[str, str], tmp_path: Path
) -> None:
    tokenfleet("db", "upgrade")
    rings = json.loads((Path(environ["TOKENFLEET_HOME"]) / "keys.json").read_text())
    swapped = tmp_path / "swapped.json"
    swapped.touch(mode=0o600)
    swapped.write_text(json.dumps({"access": rings["refresh"], "refresh": rings["access"]}))
    ran = tokenfleet("keys", "status", "--json", TOKENFLEET_KEYS_FILE=str(swapped))
    assert ran.exit_code == 1
    assert all("another ring's key" in key["problem"] for key in ran.document["data_keys"])


def test_a_home_that_does_not_exist_is_named_and_not_made_up(tokenfleet: Shell, tmp_path: Path) -> None:
    for name in ("TOKENFLEET_HOME", "TOKENFLEET_KEYS_FILE"):
        ran = tokenfleet("keys", "generate", **{name: "~nobody-of-that-name/keys"})
        assert ran.exit_code == 1
        [line] = ran.stderr.splitlines()
        assert line.startswith(f"tokenfleet: {name} is ~nobody-of-that-name")
