"""``tokenfleet webhooks test|replay``: send something now, or once more."""

from __future__ import annotations

from datetime import datetime

import click

from cli.moments import Moment
from cli.output import counted, json_option, print_json, reason_option
from cli.webhook_references import ID, endpoint_argument, find_endpoint


@click.command()
@endpoint_argument
@reason_option
@json_option
@click.pass_context
def test(ctx: click.Context, endpoint_id: int, reason: str | None, as_json: bool) -> None:
    """Send ENDPOINT a signed event of type webhook:test from here, and show what it answers.

    Sent at once and once, whether the endpoint is disabled or not; it is in the log of deliveries like any other.

    \b
    Example:
      tokenfleet webhooks test 3
    """
    from cli.session import database, load_settings, on_record
    from cli.webhook_trial import send_test

    settings = load_settings()
    with database(settings) as engine:
        with engine.connect() as connection:
            endpoint = find_endpoint(connection, endpoint_id)
        trial = send_test(engine, settings, endpoint, by=on_record(), reason=reason)
    if as_json:
        print_json(trial)
    elif trial.error is None:
        click.echo(
            f"Endpoint {endpoint_id} answered {trial.status} after {trial.duration_ms} ms: it works. "
            f"The webhook-id was {trial.event_id}."
        )
    else:
        answered = (
            f"answered {trial.status}" if trial.status is not None else f"did not answer ({trial.error})"
        )
        click.echo(
            f"Endpoint {endpoint_id} {answered} after {trial.duration_ms} ms: {trial.error}.", err=True
        )
    if trial.error is not None:
        ctx.exit(1)


@click.command()
@click.argument("delivery_ids", metavar="[DELIVERY]...", nargs=-1, type=ID)
@click.option("--endpoint", "endpoint_id", type=ID, help="Replay what this endpoint missed.")
@click.option("--since", type=Moment(), help="From this moment on (RFC 3339).")
@click.option("--until", type=Moment(), help="Up to this moment [default: now].")
@click.option("--delivered-too", is_flag=True, help="Also what was delivered.")
@reason_option
@json_option
def replay(
    delivery_ids: tuple[int, ...],
    endpoint_id: int | None,
    since: datetime | None,
    until: datetime | None,
    delivered_too: bool,
    reason: str | None,
    as_json: bool,
) -> None:
    """Deliver events once more: single deliveries by id, or what an endpoint has not received since a moment.

    Each keeps its webhook-id, so a receiver that remembers ids does nothing twice. Replayed events go behind those
    that wait for the same account, in their old order. With --since from before an endpoint was added, it is sent what
    happened until then as well.

    \b
    Examples:
      tokenfleet webhooks replay 812 813
      tokenfleet webhooks replay --endpoint 3 --since 2026-11-20T00:00:00Z
    """
    from cli.session import database, load_settings, on_record
    from store import audit, delivery_log, outbox
    from store.engine import database_now
    from tokenfleet.errors import UserError
    from tokenfleet.jobs import DeliveryId

    if bool(delivery_ids) == (endpoint_id is not None):
        raise click.UsageError("Name deliveries, or --endpoint with --since: one of the two.")
    if (endpoint_id is None) != (since is None) or (endpoint_id is None and (until or delivered_too)):
        raise click.UsageError("--endpoint and --since go together; the other options need both.")
    by = on_record()
    with database(load_settings()) as engine:
        if endpoint_id is None or since is None:
            with engine.begin() as connection:
                ids = [DeliveryId(each) for each in delivery_ids]
                for disabled in delivery_log.disabled_among(connection, ids):
                    raise UserError(_disabled(disabled))
                count = outbox.replay(connection, ids)
                named = [audit.Entry(f"delivery/{each}") for each in dict.fromkeys(delivery_ids)]
                audit.record(
                    connection, by, audit.Action.WEBHOOKS_REPLAY, named if count else [], reason=reason
                )
            if count < len(set(delivery_ids)):
                left = len(set(delivery_ids)) - count
                verbs = "does not exist or is" if left == 1 else "do not exist or are"
                raise UserError(
                    f"{left} of those named {verbs} pending still; {counted(count, 'event')} will be sent "
                    "again"
                )
        else:
            with engine.connect() as connection:
                endpoint = find_endpoint(connection, endpoint_id)
                end = until or database_now(connection)
            if endpoint.disabled_at is not None:
                raise UserError(_disabled(endpoint_id))
            count = 0
            more: int | None = 0
            while more is not None:
                with engine.begin() as connection:
                    replayed, more = outbox.replay_some(
                        connection,
                        endpoint.endpoint_id,
                        since=since,
                        until=end,
                        after=more,
                        undelivered=not delivered_too,
                    )
                    what = {
                        "replayed": replayed,
                        "since": since.isoformat(),
                        "until": end.isoformat(),
                        "delivered_too": delivered_too,
                    }
                    entry = audit.Entry(audit.endpoint_target(endpoint_id), what)
                    audit.record(
                        connection,
                        by,
                        audit.Action.WEBHOOKS_REPLAY,
                        [entry] if replayed else [],
                        reason=reason,
                    )
                count += replayed
    if as_json:
        print_json({"replayed": count})
    else:
        # An endpoint may never have been sent what it missed; a delivery that is named has been tried before.
        click.echo(f"{counted(count, 'event')} will be sent{' again' if endpoint_id is None else ''}.")


def _disabled(endpoint_id: int) -> str:
    return f"endpoint {endpoint_id} is disabled and is sent nothing: 'tokenfleet webhooks enable {endpoint_id}' first"
