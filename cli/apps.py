"""``tokenfleet apps``: the OAuth client registrations that accounts are refreshed with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, TYPE_CHECKING

import click

from cli.app_credentials import (
    certificate_text,
    check_certificate,
    check_same_client,
    read_certificate,
    read_secret,
)
from cli.app_place import app_options
from cli.app_view import facts_of, level_text, rate_left_text, spares_text, state_text, view_of, wrong_with
from cli.apps_transfer import export, import_
from cli.output import (
    counted,
    dated,
    json_option,
    print_facts,
    print_json,
    print_table,
    reason_option,
    shown,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from providers import Provider
    from store.apps import App


@click.group()
def apps() -> None:
    """Register your OAuth clients: client id, secret and variables.

    An app is one client registration at one provider. An account gets one when it is imported: the one that
    its line names; else its own (--account); else `default` of its environment; else that of the platform
    (--platform). It stays with it, because no other client can refresh its grant.
    """


apps.add_command(export)
apps.add_command(import_)


@apps.command("set")
@app_options
@click.option("--client-id", required=True, help="What the provider calls your client.")
@click.option(
    "--client-secret-file",
    type=click.File(),
    help="File that holds the client secret, or the private key that signs (PEM); - for standard input.",
)
@click.option(
    "--client-certificate",
    "client_certificate_file",
    type=click.File(),
    help="File with the client certificate, its chain and its private key (PEM).",
)
@click.option(
    "--no-client-certificate", is_flag=True, help="Forget the client certificate that is registered."
)
@click.option(
    "--variable",
    "assignments",
    metavar="KEY=VALUE",
    multiple=True,
    help="Value for a variable of the definition, for all accounts of this app. Repeatable.",
)
@click.option(
    "--keep-previous",
    is_flag=True,
    help="Keep the secrets that are registered, in case the new one is refused.",
)
@reason_option
def set_app(
    provider: str,
    environment: str,
    name: str,
    client_id: str,
    client_secret_file: IO[str] | None,
    client_certificate_file: IO[str] | None,
    no_client_certificate: bool,
    assignments: tuple[str, ...],
    keep_previous: bool,
    reason: str | None,
) -> None:
    """Register a client of PROVIDER, or replace what is registered.

    The secret is never an argument, where others on this machine could read it: it comes from a file, from
    standard input, or from a prompt that does not echo. No restart is needed. If the app was on hold because the
    provider rejected the registration, one account probes at once, and the others follow when it succeeds.

    A client certificate (mutual TLS) is checked at once. It stays registered when a secret is replaced.

    While you change the secret at the provider, --keep-previous keeps the one in use as a spare: when the provider
    refuses one secret, the next one is tried, in order.

    \b
    Examples:
      tokenfleet apps set acme --client-id 123.apps.example --client-secret-file acme.secret
      pass show acme | tokenfleet apps set acme --client-id 123.apps.example --client-secret-file -
      tokenfleet apps set acme --client-id 123.apps.example --client-secret-file new.secret --keep-previous
      tokenfleet apps set oidc --client-id me --variable token_endpoint=https://sso.example/token
      tokenfleet apps set acme --platform --client-id 123.apps.example --client-secret-file acme.secret
      tokenfleet apps set acme --client-id 123 --client-secret-file acme.secret --client-certificate acme.pem
      tokenfleet apps set acme --account customer-17 --client-id theirs --client-secret-file their.secret
    """
    from cli.session import database, load_providers, load_settings, on_record
    from store import app_certificates, app_secrets, audit
    from store import apps as registrations
    from store.keys import open_vault

    if not client_id.strip():
        raise click.UsageError("--client-id is empty: give what the provider calls your client.")
    settings = load_settings()
    definition = load_providers(settings).get(provider)
    variables = _variables(definition, assignments, allow_http=settings.tunables.allow_http_providers)
    certificate = read_certificate(definition, client_certificate_file)
    if client_secret_file is None:
        # Before anybody is asked for a secret: keys that do not fit.
        with database(settings) as engine, engine.begin() as connection:
            open_vault(connection, settings)
    secret = read_secret(definition, client_secret_file)
    with database(settings) as engine, engine.begin() as connection:
        before = registrations.find(connection, provider, environment, name)
        if keep_previous:
            check_same_client(before, client_id, secret)
        check_certificate(definition, before, given=certificate is not None, removed=no_client_certificate)
        refresh_keys = open_vault(connection, settings).refresh
        app = registrations.register(
            connection,
            refresh_keys,
            provider=provider,
            environment=environment,
            name=name,
            client_id=client_id,
            client_secret=secret,
            variables=variables,
            keep_previous=keep_previous,
        )
        if certificate is not None:
            app_certificates.put(connection, refresh_keys, app.app_id, certificate[0])
        elif no_client_certificate:
            app_certificates.remove(connection, app.app_id)
        spare = len(app_secrets.spares(connection, app.app_id))
        tied = registrations.count_accounts(connection, app.app_id)
        what = {
            "before": "new" if before is None else "replaced",
            "client_id": client_id,
            "client_secret": "sealed" if secret else "none",
            "client_certificate": "sealed" if certificate else "removed" if no_client_certificate else "kept",
            "variables": variables,
            "spare_secrets": spare,
        }
        entry = audit.Entry(audit.app_target(provider, environment, name), what)
        audit.record(connection, on_record(), audit.Action.APPS_SET, [entry], reason=reason)
    done = "Registered" if before is None else "Replaced"
    click.echo(
        f"{done} {provider}/{environment}/{name}: client id {client_id}, "
        f"{'client secret sealed' if secret else 'no client secret'}"
        f"{', ' + counted(spare, 'spare secret') if spare else ''}; used by {counted(tied, 'account')}."
    )
    if certificate is not None:
        facts = certificate[1]
        click.echo(f"Client certificate sealed: {facts.subject}, valid until {facts.expires_at:%Y-%m-%d}.")
    elif before is not None and before.client_certificate is not None:
        click.echo(f"Client certificate {'removed' if no_client_certificate else 'kept'}.")
    if before is not None and before.held_since is not None:
        click.echo(
            f"It is on hold because of {before.held_code}: one account probes now, "
            "and the others follow when it succeeds."
        )
    if missing := sorted(definition.required_variables() - variables.keys()):
        click.echo(f"Each account has to bring {', '.join(missing)} among its variables.")


def _variables(definition: Provider, assignments: tuple[str, ...], *, allow_http: bool) -> dict[str, str]:
    """Return checked values, or say which assignment is wrong and why."""
    given: dict[str, str] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--variable {assignment!r} is not KEY=VALUE.")
        given[name] = value
    return checked_variables(definition, given, allow_http=allow_http)


def checked_variables(definition: Provider, given: Mapping[str, str], *, allow_http: bool) -> dict[str, str]:
    """Return values of variables as they are stored. Raises :class:`UserError` for one that cannot be."""
    from tokenfleet.errors import UserError

    rules = definition.spec.variable_rules()
    declared = sorted(definition.spec.variables)
    variables: dict[str, str] = {}
    for name, value in given.items():
        if name not in declared:
            known = f"it knows {', '.join(declared)}" if declared else "it has none"
            raise UserError(f"{definition.name} has no variable {name!r}: {known}")
        try:
            variables[name] = rules[name].check(value, allow_http=allow_http)
        except ValueError as error:
            raise UserError(f"variable {name} of {definition.name} {error}") from error
    return variables


@apps.command("list")
@json_option
def list_apps(as_json: bool) -> None:
    """List the registered clients, and which of them may not be asked for now.

    \b
    Example:
      tokenfleet apps list
    """
    from cli.session import database, load_settings
    from store import apps as registrations
    from store.engine import database_now

    settings = load_settings()
    with database(settings) as engine, engine.connect() as connection:
        now = database_now(connection)
        registered = registrations.all_apps(connection)
        known = facts_of(connection, settings, registered, now)
        found = [
            view_of(
                app,
                accounts=registrations.count_accounts(connection, app.app_id),
                now=now,
                facts=known[app.app_id],
            )
            for app in registered
        ]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("No app is registered yet: 'tokenfleet apps set PROVIDER --client-id ID' registers one.")
        return
    print_table(
        ("provider", "environment", "name", "level", "client id", "secret", ">accounts", "state"),
        (
            (
                app.provider,
                app.environment,
                app.name,
                app.level,
                app.client_id,
                "sealed" if app.has_client_secret else "none",
                f"{app.accounts:,}",
                state_text(app, now),
            )
            for app in found
        ),
    )
    for app in found:
        for finding in wrong_with(app, now):
            click.echo(shown(f"{app.provider}/{app.environment}/{app.name}: {finding.text}"))


@apps.command()
@app_options
@json_option
def show(provider: str, environment: str, name: str, as_json: bool) -> None:
    """Show one registered client; never its secret.

    \b
    Example:
      tokenfleet apps show acme
    """
    from cli.session import database, load_settings
    from store import apps as registrations
    from store.engine import database_now

    settings = load_settings()
    with database(settings) as engine, engine.connect() as connection:
        now = database_now(connection)
        found = _find(connection, provider, environment, name)
        tied = registrations.count_accounts(connection, found.app_id)
        facts = facts_of(connection, settings, [found], now)[found.app_id]
    app = view_of(found, accounts=tied, now=now, facts=facts)
    if as_json:
        print_json(app)
        return
    print_facts(
        [
            ("app", f"{app.provider}/{app.environment}/{app.name} (id {app.app_id})"),
            ("level", level_text(app)),
            ("client id", app.client_id),
            ("client secret", "sealed" if app.has_client_secret else "none"),
            ("spare secrets", spares_text(app)),
            ("client certificate", certificate_text(app.client_certificate, now)),
            ("variables", ", ".join(f"{key}={value}" for key, value in sorted(app.variables.items()))),
            ("accounts", f"{app.accounts:,}"),
            ("state", "\n".join(finding.text for finding in wrong_with(app, now)) or "ready"),
            ("rate left", rate_left_text(app)),
            ("created", dated(app.created_at, now)),
            ("changed", dated(app.updated_at, now)),
        ]
    )


@apps.command()
@app_options
@reason_option
def remove(provider: str, environment: str, name: str, reason: str | None) -> None:
    """Remove a registered client that no account uses any more.

    \b
    Example:
      tokenfleet apps remove acme --name old
    """
    from cli.session import database, load_settings, on_record
    from store import apps as registrations
    from store import audit
    from tokenfleet.errors import UserError

    with database(load_settings()) as engine, engine.begin() as connection:
        app = _find(connection, provider, environment, name)
        tied = registrations.count_accounts(connection, app.app_id)
        if tied:
            raise UserError(
                f"{provider}/{environment}/{name} stays: {counted(tied, 'account')} are refreshed with it; "
                "import them under another app first"
            )
        registrations.remove(connection, app.app_id)
        entry = audit.Entry(audit.app_target(provider, environment, name), {"client_id": app.client_id})
        audit.record(connection, on_record(), audit.Action.APPS_REMOVE, [entry], reason=reason)
    click.echo(f"Removed {provider}/{environment}/{name}.")


def _find(connection: Connection, provider: str, environment: str, name: str) -> App:
    from store import apps as registrations
    from tokenfleet.errors import UserError

    app = registrations.find(connection, provider, environment, name)
    if app is None:
        raise UserError(
            f"no app {provider}/{environment}/{name} is registered: 'tokenfleet apps list' shows the others"
        )
    return app
