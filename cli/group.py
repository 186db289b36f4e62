"""Groups of commands that are imported when they are called, and failures that are one sentence.

Promise: ``tokenfleet --help`` imports no command, so it answers at once however heavy the commands are; a
mistake of the user's never ends in a traceback; Ctrl-C ends quietly with exit code 130, and a reader of our output
that has seen enough with 141, as if the signal had ended us.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import click
from click.exceptions import Exit, NoSuchCommand

INTERRUPTED: Final = 130
"""128 + SIGINT, as shells count it."""
PIPE_CLOSED: Final = 141
"""128 + SIGPIPE: what ``yes | head -1`` leaves of ``yes``, and nobody takes for a failure."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command is defined (``module:attribute``), and what a list of commands says about it."""

    target: str
    summary: str


Sections = Mapping[str, Mapping[str, Entry]]
"""Commands by name, under the headings that ``--help`` shows them under, in this order."""


class CommandGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def __init__(self, *args: Any, sections: Sections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self._entries = {name: entry for entries in sections.values() for name, entry in entries.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            raise NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self._entries))
        for heading, entries in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), entry.summary) for name, entry in entries.items()])


class Failure(click.ClickException):
    """What stopped the command, a sentence for each problem."""

    exit_code = 1

    def __init__(self, sentences: Sequence[str]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = tuple(sentences)

    def show(self, file: Any = None) -> None:
        for sentence in self.sentences:
            click.echo(f"tokenfleet: {sentence}", file=file, err=True)


class Root(CommandGroup):
    """The outermost group: turns what commands raise into sentences and exit codes."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        # Already here help is printed.
        with _told():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _told():
            return super().invoke(ctx)


@contextmanager
def _told() -> Iterator[None]:
    """Let whatever ends the block be an exit code, or a sentence and an exit code, unless it is a fault of ours."""
    try:
        yield
    except KeyboardInterrupt:
        # The terminal has echoed ^C; the prompt that follows belongs on a line of its own.
        click.echo(err=True)
        raise Exit(INTERRUPTED) from None
    except click.Abort:
        # What click makes of Ctrl-C, or of the end of input, at a question.
        click.echo(err=True)
        raise Exit(INTERRUPTED) from None
    except BrokenPipeError:
        drop_output()
        raise Exit(PIPE_CLOSED) from None
    except SystemExit as end:
        # What Rich makes of the same.
        if isinstance(end.__context__, BrokenPipeError):
            raise Exit(PIPE_CLOSED) from None
        raise
    except (click.ClickException, Exit):
        raise
    except UnicodeEncodeError as error:
        # How Python keeps bytes of a command line that are no text.
        if not any("\udc80" <= each <= "\udcff" for each in error.object[error.start : error.end]):
            raise
        raise click.UsageError("something on the command line is not UTF-8 text.") from error
    except Exception as error:
        # Imported now: it knows the exceptions of every library, and nothing has failed until here.
        from cli.failures import sentences_for

        sentences = sentences_for(error)
        if sentences is None:
            raise
        if isinstance(error, OSError):
            drop_output()
        raise Failure(sentences) from error


def drop_output() -> None:
    """Let what is still in a buffer go nowhere, or the interpreter complains of it when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
