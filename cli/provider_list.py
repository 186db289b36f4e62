"""``tokenfleet providers list``: who is known, by grant, category, confidence or a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import click

from cli.output import counted, duration, json_option, print_json, print_table

if TYPE_CHECKING:
    from providers import Provider

GRANTS: Final[Mapping[str, str]] = {
    "refresh_token": "refresh token",
    "client_credentials": "client credentials",
    "jwt_bearer": "signed assertion",
    "token_exchange": "token exchange",
    "access_token": "the access token",
    "none": "never renewed",
}
"""What is presented, for people."""


@dataclass(frozen=True, slots=True)
class ProviderSummary:
    """One line of ``providers list``."""

    name: str
    display_name: str
    category: str
    grant: str
    client_authentication: str
    rotation: str
    access_lifetime_seconds: int | None
    access_never_expires: bool
    """Whether access tokens live until they are revoked."""
    required_variables: tuple[str, ...]
    confidence: str
    checked: str
    unverified: int
    """How many statements of it nobody has confirmed."""
    origin: str


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of the listed providers there are of each kind, the most frequent first."""

    total: int
    grant: Mapping[str, int]
    rotation: Mapping[str, int]
    client_authentication: Mapping[str, int]
    confidence: Mapping[str, int]
    category: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Listing:
    """What ``providers list --json`` prints."""

    counts: Counts
    providers: tuple[ProviderSummary, ...]


@click.command("list")
@click.argument("word", required=False)
@click.option("--grant", type=click.Choice(list(GRANTS)), help="Only those of this grant.")
@click.option("--category", help="Only those of this category, such as crm.")
@click.option(
    "--confidence", type=click.Choice(["high", "medium", "low"]), help="Only those that are so sure."
)
@json_option
def list_providers(
    word: str | None, grant: str | None, category: str | None, confidence: str | None, as_json: bool
) -> None:
    """List the providers that this fleet can serve; those with WORD in their name, if one is given.

    The grant is what a renewal presents; tokens that live "as answered" have no usual life. --json counts what it
    lists by grant, rotation, client authentication, confidence and category.

    \b
    Examples:
      tokenfleet providers list
      tokenfleet providers list calendar
      tokenfleet providers list --grant client_credentials --category payments
    """
    from cli.session import load_offline_settings, load_providers

    known = [summary(provider) for provider in load_providers(load_offline_settings())]
    categories = sorted({each.category for each in known})
    if category is not None and category not in categories:
        raise click.BadParameter(f"{category!r} is none of {', '.join(categories)}.", param_hint="--category")
    found = [
        each
        for each in known
        if grant in (None, each.grant)
        and category in (None, each.category)
        and confidence in (None, each.confidence)
        and (word is None or word.lower() in f"{each.name} {each.display_name} {each.category}".lower())
    ]
    counts = counts_of(found)
    if as_json:
        print_json(Listing(counts, tuple(found)))
        return
    if not found:
        click.echo("No provider is like that; 'tokenfleet providers list' shows all of them.")
        return
    print_table(
        ("name", "category", "grant", "rotates", "lives", "confidence", "checked"),
        (_row(each) for each in found),
    )
    grants = ", ".join(f"{number} {GRANTS[name]}" for name, number in counts.grant.items())
    click.echo(f"\n{counted(len(found), 'provider')}: {grants}.")


def summary(provider: Provider) -> ProviderSummary:
    """Return what the list says of ``provider``."""
    spec = provider.spec
    return ProviderSummary(
        name=provider.name,
        display_name=provider.display_name,
        category=spec.category,
        grant=spec.refresh.grant,
        client_authentication=spec.client.authentication,
        rotation=spec.rotation.policy,
        access_lifetime_seconds=spec.lifetimes.access_seconds,
        access_never_expires=spec.lifetimes.access_never_expires,
        required_variables=tuple(sorted(provider.required_variables())),
        confidence=spec.confidence,
        checked=spec.checked.isoformat(),
        unverified=len(spec.unverified),
        origin=provider.origin,
    )


def counts_of(found: Sequence[ProviderSummary]) -> Counts:
    """Return how many of ``found`` there are of each kind."""

    def by(values: list[str]) -> dict[str, int]:
        return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))

    return Counts(
        total=len(found),
        grant=by([each.grant for each in found]),
        rotation=by([each.rotation for each in found]),
        client_authentication=by([each.client_authentication for each in found]),
        confidence=by([each.confidence for each in found]),
        category=by([each.category for each in found]),
    )


def _row(each: ProviderSummary) -> tuple[str, ...]:
    return (
        each.name,
        each.category.replace("_", " "),
        GRANTS[each.grant],
        each.rotation if each.grant == "refresh_token" else "",
        _life(each),
        each.confidence,
        each.checked,
    )


def _life(each: ProviderSummary) -> str:
    if each.access_lifetime_seconds is not None:
        return duration(timedelta(seconds=each.access_lifetime_seconds))
    return "until revoked" if each.access_never_expires or each.grant == "none" else "as answered"
