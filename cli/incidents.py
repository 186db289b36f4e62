"""``tokenfleet incidents``: what is wrong between a provider and one of your apps, and an operator's word on it.

Promise: an incident is resolved once; whoever comes second is told who was first, and nothing changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.incident_view import IncidentView, advice, state_text, view_of
from cli.output import counted, dated, json_option, moment, print_facts, print_json, print_table

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from store.incidents import Incident, Resolution


@click.group()
def incidents() -> None:
    """See provider incidents, and rule on them.

    An incident is opened when a provider rejects your client itself, or so many of its accounts at once that this is
    not believed: nobody's status changes then. It ends by itself when an account succeeds again.
    """


@incidents.command("list")
@click.option("--all", "with_resolved", is_flag=True, help="Show resolved ones too, the last hundred.")
@json_option
def list_incidents(with_resolved: bool, as_json: bool) -> None:
    """List open incidents.

    \b
    Examples:
      tokenfleet incidents list
      tokenfleet incidents list --all --json
    """
    from cli.session import database, load_settings
    from store import incidents as stored
    from store.engine import database_now

    with database(load_settings()) as engine, engine.connect() as connection:
        now = database_now(connection)
        found = stored.listing(connection, resolved=stored.RECENT if with_resolved else 0)
        views = _views(connection, found)
    if as_json:
        print_json(views)
        return
    if not views:
        click.echo("No incident is open." if not with_resolved else "There has been no incident.")
        return
    print_table(
        ("id", "app", "kind", "code", "opened", ">parked", ">flipped", "state"),
        (
            (
                str(each.id),
                each.app_name,
                each.kind,
                each.code,
                dated(each.opened_at, now),
                f"{each.parked:,}",
                f"{each.flipped:,}",
                state_text(each),
            )
            for each in views
        ),
    )


@incidents.command()
@click.argument("incident_id", metavar="ID", type=click.IntRange(1))
@json_option
def show(incident_id: int, as_json: bool) -> None:
    """Show one incident, whom it has set apart, and what can be done.

    \b
    Example:
      tokenfleet incidents show 7
    """
    from cli.session import database, load_settings
    from store.engine import database_now

    with database(load_settings()) as engine, engine.connect() as connection:
        now = database_now(connection)
        [view] = _views(connection, [_find(connection, incident_id)])
    if as_json:
        print_json(view)
        return
    print_facts(
        [
            ("incident", f"{view.id}: {view.kind} ({view.code})"),
            ("app", view.app_name),
            ("opened", dated(view.opened_at, now)),
            ("state", state_text(view)),
            ("resolved", dated(view.resolved_at, now)),
            ("reason", view.reason or ""),
            ("parked", f"{counted(view.parked, 'account')}, status unchanged" if view.parked else ""),
            ("flipped before", counted(view.flipped, "account") if view.flipped else ""),
            ("next sample", dated(view.sample_at, now) if view.resolved_at is None else ""),
        ]
    )
    click.echo()
    click.echo(advice(view))


@incidents.command()
@click.argument("incident_id", metavar="ID", type=click.IntRange(1))
@click.option(
    "--dismiss", "verdict", flag_value="dismissed", help="The rejections are false: ask everybody again."
)
@click.option(
    "--confirm", "verdict", flag_value="confirmed", help="They are real: these customers must sign in again."
)
@click.option("--reason", help="Why, for those who look at it later.")
@json_option
def resolve(incident_id: int, verdict: str | None, reason: str | None, as_json: bool) -> None:
    """End an incident by your own word.

    --dismiss asks every account again that was set apart, the most urgent first, at the provider's pace.
    --confirm makes the parked ones need_reauth; each customer is told, once. A client that the provider refuses cannot
    be confirmed: mend it with 'tokenfleet apps set'.

    \b
    Examples:
      tokenfleet incidents resolve 7 --dismiss --reason "the provider's status page says it is over"
      tokenfleet incidents resolve 7 --confirm
    """
    from cli.session import database, load_settings, on_record
    from store import audit
    from store.incidents import Members, Resolution

    if verdict is None:
        raise click.UsageError("say --dismiss (the rejections are false) or --confirm (they are real).")
    resolution = Resolution(verdict)
    with database(load_settings()) as engine:
        with engine.connect() as connection:
            # Counted before: while the incident is being resolved its app is locked, and workers wait for that.
            [before] = _views(connection, [_find(connection, incident_id)])
        with engine.begin() as connection:
            by = on_record()
            resolved = _resolve(connection, incident_id, resolution, actor=by.actor, reason=reason)
            what = {"verdict": resolution.value, "app": before.app_name, "parked": before.parked}
            entry = audit.Entry(f"incident/{incident_id}", what)
            audit.record(connection, by, audit.Action.INCIDENTS_RESOLVE, [entry], reason=reason)
    view = view_of(resolved, Members(before.parked, before.flipped))
    if as_json:
        print_json(view)
        return
    click.echo(_done(view))


def _resolve(
    connection: Connection, incident_id: int, resolution: Resolution, *, actor: str, reason: str | None
) -> Incident:
    from store import incidents as stored
    from store.incidents import Kind, Resolution
    from tokenfleet.errors import UserError

    found = _find(connection, incident_id)
    if (
        found.resolved_at is None
        and found.kind is Kind.CLIENT_REJECTED
        and resolution is Resolution.CONFIRMED
    ):
        raise UserError(
            f"incident {incident_id} is about the client registration, so there is no account to confirm: mend it "
            f"with 'tokenfleet apps set {found.provider} …', or say --dismiss to ask everybody again"
        )
    resolved = stored.resolve(connection, incident_id, resolution, actor=actor, reason=reason)
    if resolved is None:
        # Read again: somebody may have been first just now.
        first = _find(connection, incident_id)
        assert first.resolution is not None
        raise UserError(
            f"incident {incident_id} was resolved at {moment(first.resolved_at)} as {first.resolution.value} by "
            f"{first.actor}: nothing has changed"
        )
    return resolved


def _done(view: IncidentView) -> str:
    both = counted(view.parked + view.flipped, "account")
    match view.kind, view.resolution:
        case "client_rejected", _:
            return f"Resolved incident {view.id}: {view.app_name} is asked about again."
        case _, "confirmed":
            parked = counted(view.parked, "account")
            return (
                f"Confirmed incident {view.id}: {parked} will need a new sign-in, told one after the other."
            )
        case _:
            return f"Dismissed incident {view.id}: {both} will be asked about again, the most urgent first."


def _find(connection: Connection, incident_id: int) -> Incident:
    from store import incidents as stored
    from tokenfleet.errors import UserError

    found = stored.load(connection, incident_id)
    if found is None:
        raise UserError(
            f"there is no incident {incident_id}: 'tokenfleet incidents list --all' shows those there are"
        )
    return found


def _views(connection: Connection, found: list[Incident]) -> list[IncidentView]:
    from store import incidents as stored

    members = stored.members(connection, [each.incident_id for each in found])
    return [view_of(each, members[each.incident_id]) for each in found]
