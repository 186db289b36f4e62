"""A file that appears whole or not at all, readable by its owner only."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, final

import click

from tokenfleet.errors import UserError

EXISTS: Final = "{} exists and is never overwritten: give another file, or move it away"
UNWRITABLE: Final = "{} cannot be written ({}): give another file"


@final
class NewPath(click.Path):
    """The name of a file that a command will make: bad input when it is taken, or its directory is missing.

    So that is told before anything is done.
    """

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Raises :class:`click.BadParameter` when it exists."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if os.path.lexists(path):
            self.fail(EXISTS.format(path), param, ctx)
        if not path.parent.is_dir():
            self.fail(UNWRITABLE.format(path, os.strerror(errno.ENOENT)), param, ctx)
        return path


def _name(beside: Path, path: Path) -> None:
    """Give ``beside`` the name ``path``, unless somebody was faster."""
    try:
        # A rename would replace what has come there meanwhile: an identity, say, that a file is being sealed to.
        os.link(beside, path)
    except FileExistsError:
        raise UserError(f"{path} was made by somebody else meanwhile, and is never overwritten") from None
    except OSError:
        # No links on this file system.
        beside.rename(path)
    else:
        beside.unlink()


@contextmanager
def new_file(path: Path, *, empty: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write, beside ``path``; when the block ends well it is on the disk, and gets that name.

    Else it is removed, and so it is without ``empty`` when nothing was written. What bears the name already is never
    replaced. Raises :class:`UserError` when the file exists or cannot be written.
    """
    if os.path.lexists(path):
        raise UserError(EXISTS.format(path))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise UserError(UNWRITABLE.format(path, error.strerror)) from error
    try:
        with os.fdopen(descriptor, "wb", buffering=1024 * 1024) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            is_wanted = empty or file.tell() > 0
        if not is_wanted:
            beside.unlink()
            return
        _name(beside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            beside.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
