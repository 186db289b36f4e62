"""Naming accounts on a command line: by id, by PROVIDER/EXTERNAL_ID, or one a line on standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from store.details import AccountDetail
    from store.queries import AccountName
    from tokenfleet.jobs import AccountId

F = TypeVar("F", bound=Callable[..., Any])

STANDARD_INPUT: Final = "-"
LARGEST_ID: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Reference:
    """What somebody wrote, and what it says: an id, or a name."""

    text: str
    account_id: AccountId | None
    name: AccountName | None


def environment_option(command: F) -> F:
    """Add ``--environment``, in which PROVIDER/EXTERNAL_ID is looked up."""
    option = click.option(
        "--environment",
        default="production",
        show_default=True,
        help="Where PROVIDER/EXTERNAL_ID is looked up.",
    )
    return option(command)


def parse(text: str, *, environment: str) -> Reference:
    """Return what ``text`` refers to. Raises :class:`click.UsageError` when it can be no account."""
    from store.queries import AccountName
    from tokenfleet.jobs import AccountId

    if text.isascii() and text.isdecimal():
        # Larger than any id there can be: an account that does not exist, like any other.
        return Reference(text, AccountId(min(int(text[:20]), LARGEST_ID)), None)
    provider, separator, external_id = text.partition("/")
    if not separator or not provider or not external_id:
        raise click.UsageError(f"{text!r} is neither an account id nor PROVIDER/EXTERNAL_ID.")
    return Reference(text, None, AccountName(provider, environment, external_id))


def parse_all(texts: Iterable[str], *, environment: str) -> list[Reference]:
    """Return what ``texts`` refer to, once each; ``-`` stands for the lines of standard input."""
    references = (parse(text, environment=environment) for text in _lines(texts))
    return list(dict.fromkeys(references))


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if text != STANDARD_INPUT:
            yield text
            continue
        for line in sys.stdin:
            if stripped := line.strip():
                yield stripped


def find(connection: Connection, references: Sequence[Reference]) -> dict[Reference, AccountDetail]:
    """Return the accounts that exist among ``references``."""
    from store import queries
    from store.details import details

    ids = queries.resolve(connection, [reference.name for reference in references if reference.name])
    found = {
        reference: reference.account_id if reference.name is None else ids.get(reference.name)
        for reference in references
    }
    accounts = details(connection, {each for each in found.values() if each is not None})
    return {
        reference: accounts[account_id]
        for reference, account_id in found.items()
        if account_id is not None and account_id in accounts
    }


def find_one(connection: Connection, text: str, *, environment: str) -> AccountDetail:
    """Return the account that ``text`` names. Raises :class:`UserError` when there is none."""
    from tokenfleet.errors import UserError

    reference = parse(text, environment=environment)
    account = find(connection, [reference]).get(reference)
    if account is None:
        raise UserError(missing(reference))
    return account


def missing(reference: Reference) -> str:
    """Return the sentence for an account that does not exist."""
    if reference.name is None:
        return f"there is no account {reference.text}: 'tokenfleet accounts list' shows those that exist"
    return (
        f"there is no account {reference.text} in environment {reference.name.environment!r}: 'tokenfleet "
        "accounts list' shows those that exist; --environment chooses another one"
    )
