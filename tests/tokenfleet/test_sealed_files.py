"""Files sealed to a recipient: opened by its identity, by the age format's own tools, and by nobody else."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfleet.errors import UserError
from tokenfleet.sealed_files import (
    CUT,
    NOT_SEALED,
    Identity,
    Recipient,
    SealedFileError,
    opened,
    seal,
)

IDENTITY = Identity.generate("identity.txt")
LINES = [b"%d %s\n" % (number, b"x" * 900) for number in range(300)]
"""More than four of the pieces that are authenticated one by one."""


def sealed(pieces: list[bytes], recipient: Recipient = IDENTITY.recipient) -> bytes:
    writer = io.BytesIO()
    seal(pieces, writer, recipient)
    return writer.getvalue()


def open_files() -> int:
    """Return how many files this process has open; 0 where that cannot be seen."""
    seen = Path("/proc/self/fd")
    return len(list(seen.iterdir())) if seen.exists() else 0


class Pipe(io.BytesIO):
    """A stream that cannot be read twice."""

    def seekable(self) -> bool:
        return False


def read(content: bytes, identity: Identity = IDENTITY, *, pipe: bool = False) -> bytes:
    with opened(Pipe(content) if pipe else io.BytesIO(content), identity) as stream:
        return stream.read()


@pytest.mark.parametrize("pipe", [False, True])
def test_what_is_sealed_is_opened_by_its_identity(pipe: bool) -> None:
    assert read(sealed(LINES), pipe=pipe) == b"".join(LINES)
    assert read(sealed([]), pipe=pipe) == b""


def test_what_the_writer_raises_is_raised_as_it_was() -> None:
    class Closed(io.BytesIO):
        def write(self, _piece: object) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        seal(LINES, Closed(), IDENTITY.recipient)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=9000), max_size=20))
def test_pieces_of_any_size_come_back_in_their_order(pieces: list[bytes]) -> None:
    assert read(sealed(pieces), pipe=True) == b"".join(pieces)


def test_the_format_is_age_and_keys_are_spelled_as_its_tools_spell_them(tmp_path: Path) -> None:
    assert (
        pyrage.decrypt(sealed([b"a\n"]), [pyrage.x25519.Identity.from_str(IDENTITY.secret.reveal())])
        == b"a\n"
    )
    theirs = pyrage.encrypt(b"b\n", [pyrage.x25519.Recipient.from_str(IDENTITY.recipient.text)], armored=True)
    assert read(theirs) == b"b\n"
    path = tmp_path / "identity.txt"
    path.touch(mode=0o600)
    path.write_text(IDENTITY.document())
    assert Identity.read(path) == Identity(IDENTITY.recipient, IDENTITY.secret, str(path))
    assert IDENTITY.secret.reveal() not in f"{IDENTITY} {IDENTITY!r}"


@pytest.mark.parametrize("cut", [1, 16, 100, 65_552])
def test_a_file_that_was_cut_yields_nothing_where_it_can_be_checked_first(cut: int) -> None:
    with pytest.raises(SealedFileError, match=CUT):
        read(sealed(LINES)[:-cut])


def test_a_stream_that_was_cut_yields_only_what_is_authentic_and_never_an_end() -> None:
    content = sealed(LINES)
    taken = bytearray()

    def read_on() -> None:
        with opened(Pipe(content[:-20]), IDENTITY) as stream:
            while True:
                piece = stream.read(1000)
                assert piece, "a file without an end looked whole"
                taken.extend(piece)

    with pytest.raises(SealedFileError, match=CUT):
        read_on()
    assert 0 < len(taken) < len(b"".join(LINES))
    assert b"".join(LINES).startswith(taken)


def test_a_changed_byte_is_noticed_wherever_it_is() -> None:
    content = sealed(LINES[:3])
    for place in range(0, len(content), 97):
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        with pytest.raises(SealedFileError):
            read(changed)


@pytest.mark.parametrize("pipe", [False, True])
def test_another_identity_is_told_in_a_sentence(pipe: bool) -> None:
    other = Identity.generate("other.txt")
    with pytest.raises(SealedFileError, match=r"another recipient's key than the one in other\.txt"):
        read(sealed(LINES), other, pipe=pipe)


@pytest.mark.parametrize("content", [b"", b"{}\n", b"age-encryption.org/v1\n-> X25519 abc"])
def test_a_file_of_another_kind_is_told_in_a_sentence(content: bytes) -> None:
    with pytest.raises(SealedFileError) as refused:
        read(content)
    assert str(refused.value) in {NOT_SEALED, CUT}


def test_what_the_pieces_raise_is_raised() -> None:
    def broken(error: BaseException) -> Iterator[bytes]:
        yield b"a"
        raise error

    for error in (UserError("Postgres is away"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised:
            seal(broken(error), io.BytesIO(), IDENTITY.recipient)
        assert raised.value is error


def test_a_reader_that_stops_early_leaves_no_thread_and_no_pipe() -> None:
    before, files = threading.active_count(), open_files()
    for _ in range(3):
        with opened(Pipe(sealed(LINES)), IDENTITY) as stream:
            assert stream.read(10) == LINES[0][:10]
    assert threading.active_count() == before
    assert open_files() == files


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("bob", "this is no recipient"),
        ("age1zzz", "this is no recipient"),
        (IDENTITY.secret.reveal(), "this is an identity, which opens files"),
        (IDENTITY.secret.reveal().lower(), "this is an identity, which opens files"),
    ],
    ids=["a name", "too short", "an identity", "an identity in small letters"],
)
def test_a_recipient_that_is_none_is_refused_and_not_repeated(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        Recipient.parse(text)
    assert text not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (IDENTITY.document(), 0o644, "can be read by others: run 'chmod 600"),
        ("", 0o600, "is no identity file: it has 0 lines"),
        (IDENTITY.document() * 2, 0o600, "is no identity file: it has 2 lines"),
        ("AGE-SECRET-KEY-1XYZ", 0o600, "holds a damaged identity"),
    ],
)
def test_an_identity_file_that_will_not_do_is_told_in_a_sentence(
    tmp_path: Path, content: str, mode: int, reason: str
) -> None:
    path = tmp_path / "identity.txt"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(UserError, match=reason) as refused:
        Identity.read(path)
    assert "AGE-SECRET-KEY-1XYZ" not in str(refused.value)


def test_an_identity_file_that_is_missing_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Identity.read(tmp_path / "none.txt")
