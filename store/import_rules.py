"""What an import needs to know of a provider, told by whoever knows its definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from tokenfleet.connected import ConnectedAccount
from tokenfleet.errors import UserError
from tokenfleet.lifetimes import NOTHING_SAID, Lifetimes
from tokenfleet.presented import Presented
from tokenfleet.tokens import Margins

CredentialField = Literal["refresh_token", "access_token"]


def no_answers(_answer: dict[str, Any], _received_at: datetime) -> Sequence[ConnectedAccount]:
    """Connect nobody: for rules that are made without a definition. Raises :class:`UserError`."""
    raise UserError("answer cannot be read: nobody has said what this provider's answers look like")


@dataclass(frozen=True, slots=True)
class ProviderRules:
    """What an import needs to know of a provider.

    ``check`` takes variables and returns a reason, or None. ``connect`` takes the answer that connects accounts and
    when it came, and returns those accounts; it raises :class:`UserError` with the reason.
    """

    margins: Margins
    check: Callable[[Mapping[str, str]], str | None]
    lifetimes: Lifetimes = NOTHING_SAID
    presents: Presented = Presented.REFRESH_TOKEN
    connect: Callable[[dict[str, Any], datetime], Sequence[ConnectedAccount]] = no_answers

    @property
    def credential(self) -> CredentialField | None:
        """The field of a line that holds what the account lives by; None when its client alone is enough."""
        match self.presents:
            case Presented.REFRESH_TOKEN | Presented.SUBJECT_TOKEN:
                return "refresh_token"
            case Presented.ACCESS_TOKEN:
                return "access_token"
            case Presented.NOTHING:
                return None if self.lifetimes.renews else "access_token"

    @property
    def credential_name(self) -> str:
        """What people call that."""
        if self.presents is Presented.SUBJECT_TOKEN:
            return "subject token"
        return (self.credential or "access_token").replace("_", " ")


RulesOf = Callable[[str], ProviderRules]
"""Returns the rules of the provider with that name; raises :class:`UserError` if there is none."""
