"""Errors of the application, one class per decision a caller makes.

tokenfleet_client.errors.TokenfleetError
 └── UserError                 somebody can mend it now: one sentence, exit code 1
      ├── SettingsError        the environment is wrong: every problem listed at once
      └── DefinitionError      a provider definition is wrong: file, key and reason of each mistake
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenfleet_client.errors import TokenfleetError


class UserError(TokenfleetError):
    """The command cannot go on, and the message says in one sentence what to do about it."""


class SettingsError(UserError):
    """The settings are unusable. ``problems`` holds one sentence for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class DefinitionError(UserError):
    """Provider definitions are unusable. ``problems`` holds one sentence for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))
