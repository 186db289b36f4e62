"""A file that appears whole or not at all, and replaces nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.new_file import new_file
from tokenfleet.errors import UserError


def test_a_file_has_its_name_when_it_is_whole_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with new_file(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"whole", 0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_what_somebody_else_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "identity.txt"

    def write() -> None:
        with new_file(path) as file:
            file.write(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(UserError, match="never overwritten"):
        write()
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]
