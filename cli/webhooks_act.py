"""``tokenfleet webhooks add|rotate-secret|enable|disable|remove``."""

from __future__ import annotations

from datetime import timedelta

import click

from cli.output import counted, duration, json_option, print_json, reason_option
from cli.webhook_references import endpoint_argument, find_endpoint

SHOWN_ONCE = "It is shown now and never again; the receiver verifies with it (docs/webhooks.md)."


@click.command()
@click.argument("url")
@click.option(
    "--event",
    "event_types",
    multiple=True,
    metavar="TYPE",
    help="Only events of this type, or of a group (provider:*). Repeatable.",
)
@click.option("--tenant", "tenants", multiple=True, help="Only accounts of this tenant. Repeatable.")
@click.option("--environment", "environments", multiple=True, help="Only this environment. Repeatable.")
@click.option("--description", help="What it is, for people.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    help="Requests at once, by all workers together.",
)
@reason_option
@json_option
def add(
    url: str,
    event_types: tuple[str, ...],
    tenants: tuple[str, ...],
    environments: tuple[str, ...],
    description: str | None,
    concurrency: int,
    reason: str | None,
    as_json: bool,
) -> None:
    """Add an endpoint: it is sent what happens from now on. Prints its secret, once.

    An endpoint for certain tenants hears nothing of incidents at providers, which belong to no tenant.

    \b
    Examples:
      tokenfleet webhooks add https://example.com/hooks/tokenfleet
      tokenfleet webhooks add https://blue.example/hook --tenant blue --event 'integrated_account:*'
    """
    from cli.session import database, load_settings, on_record
    from store import audit, endpoints
    from store.keys import open_vault
    from tokenfleet.errors import UserError
    from tokenfleet.receiver_urls import check_url

    _check_event_types(event_types)
    settings = load_settings()
    try:
        check_url(url, allow_private=settings.tunables.allow_private_webhooks)
    except UserError as error:
        raise click.UsageError(f"{error}.") from error
    with database(settings) as engine, engine.begin() as connection:
        twins = [each.endpoint_id for each in endpoints.all_endpoints(connection) if each.url == url]
        endpoint, secret = endpoints.add(
            connection,
            open_vault(connection, settings).refresh,
            url=url,
            description=description,
            event_types=event_types,
            tenants=tenants,
            environments=environments,
            concurrency=concurrency,
        )
        what = {
            "url": url,
            "event_types": list(event_types),
            "tenants": list(tenants),
            "environments": list(environments),
        }
        entry = audit.Entry(audit.endpoint_target(endpoint.endpoint_id), what)
        audit.record(connection, on_record(), audit.Action.WEBHOOKS_ADD, [entry], reason=reason)
    if twins:
        # On purpose, it may be: two endpoints have two secrets and two filters.
        click.echo(
            f"Endpoint {twins[0]} has the same URL: what both are to hear of is sent there twice.", err=True
        )
    if as_json:
        print_json({"endpoint_id": endpoint.endpoint_id, "secret": secret.reveal()})
        return
    click.echo(f"Added endpoint {endpoint.endpoint_id}. Its secret:\n\n  {secret.reveal()}\n\n{SHOWN_ONCE}")
    click.echo(f"Try it: tokenfleet webhooks test {endpoint.endpoint_id}")


def _check_event_types(names: tuple[str, ...]) -> None:
    """A mistyped name would wait for events that never come."""
    from tokenfleet_client.webhooks import EventType

    known = [each.value for each in EventType if each is not EventType.TEST]
    groups = sorted({f"{name.partition(':')[0]}:*" for name in known})
    for name in names:
        if name not in known and name not in groups:
            raise click.UsageError(
                f"--event {name!r} is no event of ours; known: {', '.join([*groups, *known])}."
            )


@click.command("rotate-secret")
@endpoint_argument
@click.option("--at-once", is_flag=True, help="Let the old secret sign nothing more: somebody else knows it.")
@reason_option
@json_option
def rotate_secret(endpoint_id: int, at_once: bool, reason: str | None, as_json: bool) -> None:
    """Give ENDPOINT a new secret and print it, once. For 24 hours messages are signed with both.

    \b
    Example:
      tokenfleet webhooks rotate-secret 3
    """
    from cli.session import database, load_settings, on_record
    from store import audit, endpoints
    from store.keys import open_vault

    settings = load_settings()
    with database(settings) as engine, engine.begin() as connection:
        endpoint = find_endpoint(connection, endpoint_id)
        overlap = timedelta(0) if at_once else endpoints.OVERLAP
        vault = open_vault(connection, settings)
        secret = endpoints.rotate_secret(connection, vault.refresh, endpoint.endpoint_id, overlap=overlap)
        entry = audit.Entry(audit.endpoint_target(endpoint_id), {"url": endpoint.url, "at_once": at_once})
        audit.record(connection, on_record(), audit.Action.WEBHOOKS_ROTATE_SECRET, [entry], reason=reason)
    if as_json:
        print_json({"endpoint_id": endpoint.endpoint_id, "secret": secret.reveal()})
        return
    click.echo(f"The new secret of endpoint {endpoint_id}:\n\n  {secret.reveal()}\n\n{SHOWN_ONCE}")
    click.echo(
        "The old one signs nothing any more."
        if at_once
        else f"The old one signs beside it for {duration(overlap)}."
    )


@click.command()
@endpoint_argument
@click.option(
    "--with-missed", is_flag=True, help="Also what happened meanwhile, before what happens from now on."
)
@reason_option
def enable(endpoint_id: int, with_missed: bool, reason: str | None) -> None:
    """Send ENDPOINT again: what waits for it, and what happens from now on.

    What happened while it was disabled is not among that, unless you ask for it: with --with-missed each account's
    events come in their order. 'tokenfleet webhooks replay' fetches them later as well, behind newer ones.

    \b
    Examples:
      tokenfleet webhooks enable 3
      tokenfleet webhooks enable 3 --with-missed
    """
    from cli.session import database, load_settings, on_record
    from store import audit, endpoints, outbox
    from tokenfleet.errors import UserError

    by = on_record()
    missed = 0
    more: int | None = 0 if with_missed else None
    with database(load_settings()) as engine:
        while True:
            with engine.begin() as connection:
                endpoint = find_endpoint(connection, endpoint_id)
                if more is not None and endpoint.disabled_at is not None:
                    found, more = outbox.catch_up(connection, endpoint.endpoint_id, after=more)
                    missed += found
                    if more is not None:
                        continue
                if not endpoints.enable(connection, endpoint.endpoint_id):
                    raise UserError(f"endpoint {endpoint_id} is enabled already: nothing is changed")
                what = {"url": endpoint.url} | ({"missed": missed} if with_missed else {})
                entry = audit.Entry(audit.endpoint_target(endpoint_id), what)
                audit.record(connection, by, audit.Action.WEBHOOKS_ENABLE, [entry], reason=reason)
                waiting = endpoints.pending_counts(connection).get(endpoint.endpoint_id, 0)
                break
    click.echo(f"Enabled endpoint {endpoint_id}; {counted(waiting, 'event')} waited for it.")
    if with_missed:
        click.echo(f"Among them are {counted(missed, 'event')} that it had missed.")
    elif endpoint.disabled_at is not None:
        since = (
            f"{min(endpoint.disabled_at, endpoint.failing_since or endpoint.disabled_at):%Y-%m-%dT%H:%M:%SZ}"
        )
        click.echo(f"What it missed: tokenfleet webhooks replay --endpoint {endpoint_id} --since {since}")


@click.command()
@endpoint_argument
@reason_option
def disable(endpoint_id: int, reason: str | None) -> None:
    """Send ENDPOINT nothing until it is enabled again. What waits for it is kept.

    \b
    Example:
      tokenfleet webhooks disable 3
    """
    from cli.session import database, load_settings, on_record
    from store import audit, endpoints
    from tokenfleet.delivery_policy import DisabledReason
    from tokenfleet.errors import UserError

    with database(load_settings()) as engine, engine.begin() as connection:
        endpoint = find_endpoint(connection, endpoint_id)
        if not endpoints.disable(connection, endpoint.endpoint_id, DisabledReason.OPERATOR):
            raise UserError(f"endpoint {endpoint_id} is disabled already: nothing is changed")
        entry = audit.Entry(audit.endpoint_target(endpoint_id), {"url": endpoint.url})
        audit.record(connection, on_record(), audit.Action.WEBHOOKS_DISABLE, [entry], reason=reason)
    click.echo(f"Disabled endpoint {endpoint_id}.")


@click.command()
@endpoint_argument
@reason_option
def remove(endpoint_id: int, reason: str | None) -> None:
    """Remove ENDPOINT, what waits for it, and its log.

    \b
    Example:
      tokenfleet webhooks remove 3
    """
    from cli.session import database, load_settings, on_record
    from store import audit, endpoints
    from tokenfleet.delivery_policy import DisabledReason

    with database(load_settings()) as engine:
        with engine.begin() as connection:
            endpoint = find_endpoint(connection, endpoint_id)
            endpoints.disable(connection, endpoint.endpoint_id, DisabledReason.REMOVED)
            entry = audit.Entry(audit.endpoint_target(endpoint_id), {"url": endpoint.url})
            audit.record(connection, on_record(), audit.Action.WEBHOOKS_REMOVE, [entry], reason=reason)
        is_gone = False
        while not is_gone:
            with engine.begin() as connection:
                is_gone = endpoints.remove_some(connection, endpoint.endpoint_id)
    click.echo(f"Removed endpoint {endpoint_id} ({endpoint.url}).")
