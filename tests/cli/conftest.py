"""Commands run as a shell would run them, with the environment of a fleet that has a database of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import root


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended, and what it printed."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The JSON document on standard output."""
        return json.loads(self.stdout)


class Shell:
    """Runs ``tokenfleet`` commands in one environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = dict(environ)

    def __call__(self, *words: str, stdin: str | None = None, **environ: str) -> Ran:
        """Run one command; ``environ`` is added to the shell's, for this command only."""
        inherited = dict.fromkeys((name for name in os.environ if name.startswith("TOKENFLEET_")), None)
        result = CliRunner().invoke(
            root,
            words,
            input=stdin,
            env={**inherited, **self.environ, **environ},
            prog_name="tokenfleet",
            catch_exceptions=False,
        )
        return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def tokenfleet(environ: dict[str, str]) -> Shell:
    """A shell with the settings of this test's fleet."""
    return Shell(environ)
