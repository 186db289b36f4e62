"""Files for somebody else's eyes: sealed to a recipient's public key, opened with the identity that belongs to it.

The format is age (age-encryption.org/v1, X25519 recipients): published, streaming, authenticated in pieces of 64 KiB,
with an end that cannot be cut off unnoticed, and opened by the ``age`` and ``rage`` commands and by libraries of many
languages (docs/adr/0014). Keys are spelled as ``age-keygen`` spells them. It says nothing of who sealed a file.

Invariants: an identity is never printed; what :class:`Opened` yields was authenticated; a file that is cut, damaged or
for somebody else ends in one sentence.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self, cast, final

from tokenfleet.errors import UserError
from tokenfleet_client.secret import Secret

if TYPE_CHECKING:
    from types import TracebackType

RECIPIENT_PREFIX: Final = "age1"
IDENTITY_PREFIX: Final = "AGE-SECRET-KEY-1"
_PUBLIC_KEY: Final = "# public key: "

NOT_A_RECIPIENT: Final = (
    "this is no recipient: it is the line that begins with age1, which 'tokenfleet keys recipient' (or age-keygen) "
    "prints where the file is to be opened"
)
_IDENTITY_GIVEN: Final = (
    "this is an identity, which opens files and never leaves its machine: give the recipient that belongs to it, the "
    "line that begins with age1; and make a new identity, because this one was just shown to others on this machine"
)
CUT: Final = "it is cut off or damaged: have it sent again"
OTHER_KEY: Final = "it is sealed to another recipient's key than the one in {identity}"
NOT_SEALED: Final = "it is not a file that was sealed (age), or its beginning is missing"


class SealedFileError(UserError):
    """The file cannot be opened with this identity; the message begins with "it"."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """A public key to which files are sealed. Its spelling names it everywhere: it is no secret."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the recipient that ``text`` spells. Raises :class:`UserError`, which does not repeat it."""
        from pyrage import RecipientError, x25519

        text = text.strip()
        if text.upper().startswith(IDENTITY_PREFIX):
            raise UserError(_IDENTITY_GIVEN)
        try:
            return cls(str(x25519.Recipient.from_str(text)))
        except RecipientError:
            raise UserError(NOT_A_RECIPIENT) from None

    def __str__(self) -> str:
        return self.text


@final
@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair; ``secret`` opens what is sealed to ``recipient``. ``name`` is the file that it stands in."""

    recipient: Recipient
    secret: Secret
    name: str

    @classmethod
    def generate(cls, name: str) -> Self:
        """Return a new identity, stored nowhere."""
        from pyrage import x25519

        made = x25519.Identity.generate()
        return cls(Recipient(str(made.to_public())), Secret(str(made)), name)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the identity in ``path``. Raises :class:`UserError` when others can read it, or it holds none."""
        from pyrage import IdentityError, x25519

        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                    raise UserError(f"{path} can be read by others: run 'chmod 600 {path}'")
                lines = file.read(64 * 1024).decode("utf-8", "replace").split()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        spelled = [line for line in lines if line.startswith(IDENTITY_PREFIX)]
        if len(spelled) != 1:
            raise UserError(
                f"{path} is no identity file: it has {len(spelled)} lines that begin with {IDENTITY_PREFIX}, and one "
                "is needed ('tokenfleet keys recipient' makes one)"
            )
        try:
            found = x25519.Identity.from_str(spelled[0])
        except IdentityError:
            raise UserError(f"{path} holds a damaged identity: restore it from your backup") from None
        return cls(Recipient(str(found.to_public())), Secret(spelled[0]), str(path))

    def document(self) -> str:
        """Return the content of an identity file, as ``age-keygen`` writes it."""
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        return f"# created: {now}\n{_PUBLIC_KEY}{self.recipient}\n{self.secret.reveal()}\n"


def seal(pieces: Iterable[bytes], writer: BinaryIO, recipient: Recipient) -> None:
    """Write ``pieces``, one after the other, to ``writer`` for ``recipient``; what either of them raises is raised."""
    import pyrage
    from pyrage import x25519

    source, sink = _Pieces(iter(pieces)), _Sink(writer)
    try:
        pyrage.encrypt_io(source, sink, [x25519.Recipient.from_str(recipient.text)])
    except Exception:
        # The library makes an error of its own of what reading or writing raised.
        if (error := source.error or sink.error) is not None:
            raise error from None
        raise


def check(reader: BinaryIO, identity: Identity) -> None:
    """Read ``reader`` to its end and keep nothing. Raises :class:`SealedFileError` when it is not whole."""
    _open(reader, _Nowhere(), identity)


@final
class Opened(io.RawIOBase):
    """What is sealed in ``reader``, to be read as a stream, by one thread; close it in any case.

    :meth:`read` raises :class:`SealedFileError` where the file turns out to be cut or damaged, or for another identity:
    all that was read before is as it was sealed, and there is no end without it.
    """

    def __init__(self, reader: BinaryIO, identity: Identity) -> None:
        super().__init__()
        read, write = os.pipe()
        self._pipe = read
        self._error: BaseException | None = None
        self._opener = threading.Thread(
            target=self._run,
            args=(reader, os.fdopen(write, "wb", buffering=0), identity),
            name="opener",
            daemon=True,
        )
        self._opener.start()

    def _run(self, reader: BinaryIO, writer: BinaryIO, identity: Identity) -> None:
        try:
            with writer:
                _open(reader, _All(writer), identity)
        except BaseException as error:  # noqa: BLE001  # It is raised where the stream is read.
            self._error = error

    def readable(self) -> bool:
        return True

    # Whatever takes bytes: the standard library has a name for that from Python 3.12 on.
    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        piece = os.read(self._pipe, len(view))
        if not piece:
            self._opener.join()
            if self._error is not None:
                raise self._error
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            # Who still writes finds the pipe closed, and ends.
            os.close(self._pipe)
            self._opener.join()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(reader: BinaryIO, writer: Any, identity: Identity) -> None:
    import pyrage
    from pyrage import x25519

    try:
        pyrage.decrypt_io(reader, writer, [x25519.Identity.from_str(identity.secret.reveal())])
    except pyrage.DecryptError as error:
        if "No matching keys" in str(error):
            raise SealedFileError(OTHER_KEY.format(identity=identity.name)) from None
        raise SealedFileError(NOT_SEALED) from None
    except OSError as error:
        # The library's own errors have no number; the system's have.
        if error.errno is not None:
            raise
        raise SealedFileError(CUT) from None


class _Pieces:
    """Pieces of bytes as a file to read. Remembers what they raise."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        try:
            while not self._rest:
                self._rest = memoryview(next(self._pieces))
        except StopIteration:
            return b""
        except BaseException as error:
            self.error = error
            raise
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)


class _Sink:
    """Writes to ``writer``. Remembers what that raises."""

    def __init__(self, writer: BinaryIO) -> None:
        self._writer = writer
        self.error: BaseException | None = None

    def write(self, piece: bytes) -> int:
        try:
            return self._writer.write(piece)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            self._writer.flush()
        except BaseException as error:
            self.error = error
            raise


class _Nowhere:
    def write(self, piece: bytes) -> int:
        return len(piece)

    def flush(self) -> None:
        pass


class _All:
    """Writes whole pieces to a pipe, which takes as much as it has room for."""

    def __init__(self, writer: BinaryIO) -> None:
        self._writer = writer

    def write(self, piece: bytes) -> int:
        rest = memoryview(piece)
        while rest:
            rest = rest[self._writer.write(rest) :]
        return len(piece)

    def flush(self) -> None:
        pass


@contextlib.contextmanager
def opened(reader: BinaryIO, identity: Identity) -> Iterator[BinaryIO]:
    """Yield what is sealed in ``reader`` as a buffered stream: :class:`Opened`.

    A file that can be read twice is checked to its end before the first byte is yielded, so that one that is not whole
    yields nothing. Raises :class:`SealedFileError`.
    """
    if reader.seekable():
        began = reader.tell()
        check(reader, identity)
        reader.seek(began)
    with Opened(reader, identity) as raw:
        yield cast("BinaryIO", io.BufferedReader(raw, 256 * 1024))
