"""What the answer that connects a customer comes to: one account for each token set that it brings."""

from __future__ import annotations

from dataclasses import dataclass

from tokenfleet.outcome import TokenAnswer


@dataclass(frozen=True, slots=True)
class ConnectedAccount:
    """One account of an installation, with the chain of tokens that is its own.

    ``part`` tells it from the others: it is added, after a slash, to the installation's external id. None where the
    installation's own is meant.
    """

    part: str | None
    tokens: TokenAnswer
