"""``tokenfleet providers unknowns``: answers that no definition describes, each with the rule that would."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import click

from cli.output import counted, dated, json_option, print_json, relative, shown

if TYPE_CHECKING:
    from providers import Registry
    from store.unknowns import UnknownShape


@dataclass(frozen=True, slots=True)
class Unknown:
    """One shape of answer that no rule describes.

    ``suggested_rule`` is TOML for the definition, None where no rule would do; ``note`` says why, or what else to know.
    ``described_by`` names the rules that the definition has for it by now.
    """

    provider: str
    code: str
    shape: str
    times: int
    account_id: int | None
    first_seen_at: datetime
    last_seen_at: datetime
    suggested_rule: str | None
    described_by: str | None
    note: str | None


@click.command()
@click.argument("provider", required=False)
@json_option
def unknowns(provider: str | None, as_json: bool) -> None:
    """List answers that no rule describes, and the rule that would describe each.

    Accounts that are answered like this are asked again twice and then set apart; no customer is told. Add the
    rule to the definition, with the outcome that the provider's documentation gives it, and restart the fleet.
    What an answer said is never kept: only its status, its member names, and an error code that is a plain word.

    \b
    Examples:
      tokenfleet providers unknowns
      tokenfleet providers unknowns acme --json
    """
    from cli.session import database, load_providers, load_settings
    from store import unknowns as answers
    from store.engine import database_now

    settings = load_settings()
    registry = load_providers(settings)
    with database(settings) as engine, engine.connect() as connection:
        now = database_now(connection)
        remembered = answers.remembered(connection, provider)
    if provider is not None and not remembered:
        # Also of a definition that is gone: what is remembered is shown. A name that never was is a mistake.
        registry.get(provider)
    found = [_described(each, registry) for each in remembered]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo(
            f"Every answer{f' of {provider}' if provider else ''} so far was one that a rule describes."
        )
    for each in found:
        _print(each, now)


def _described(seen: UnknownShape, registry: Registry) -> Unknown:
    from providers.suggestions import suggest

    spec = registry.get(seen.provider).spec if seen.provider in registry else None
    suggestion = suggest(seen.code, seen.shape, spec)
    return Unknown(
        provider=seen.provider,
        code=seen.code,
        shape=seen.shape,
        times=seen.times,
        account_id=seen.account_id,
        first_seen_at=seen.first_seen_at,
        last_seen_at=seen.last_seen_at,
        suggested_rule=suggestion.rule,
        described_by=suggestion.described_by,
        note=suggestion.note if spec else "There is no definition of that name any more.",
    )


def _print(unknown: Unknown, now: datetime) -> None:
    click.echo(
        shown(
            f"{unknown.provider}: {unknown.code}, {counted(unknown.times, 'time')}, "
            f"last {relative(unknown.last_seen_at, now)}"
            f"{f' by account {unknown.account_id}' if unknown.account_id else ''}, "
            f"first {dated(unknown.first_seen_at, now)}"
        )
    )
    click.echo(shown(f"  answer: {unknown.shape}"))
    if unknown.note:
        click.echo(f"  {unknown.note}")
    if unknown.described_by:
        click.echo(f"  The definition describes it by now: {unknown.described_by}.")
    elif unknown.suggested_rule:
        for line in unknown.suggested_rule.splitlines():
            click.echo(shown(f"    {line}"))
    click.echo()
