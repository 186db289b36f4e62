"""``tokenfleet apps``: the OAuth client registrations that accounts are refreshed with."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Final

import click

from cli.app_place import app_options
from cli.app_view import facts_of, level_text, rate_left_text, spares_text, state_text, view_of, wrong_with
from cli.output import counted, dated, json_option, print_facts, print_json, print_table, shown

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from providers import Provider
    from store.apps import App
    from tokenfleet_client.secret import Secret

MAX_SECRET_CHARACTERS: Final = 8192


@click.group()
def apps() -> None:
    """Register your OAuth clients: client id, secret and variables.

    An app is one client registration at one provider. An account gets one when it is imported: the one that
    its line names; else its own (--account); else `default` of its environment; else that of the platform
    (--platform). It stays with it, because no other client can refresh its grant.
    """


@apps.command("set")
@app_options
@click.option("--client-id", required=True, help="What the provider calls your client.")
@click.option(
    "--client-secret-file", type=click.File(), help="File that holds the client secret; - for standard input."
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
def set_app(
    provider: str,
    environment: str,
    name: str,
    client_id: str,
    client_secret_file: IO[str] | None,
    assignments: tuple[str, ...],
    keep_previous: bool,
) -> None:
    """Register a client of PROVIDER, or replace what is registered.

    The secret is never an argument, where others on this machine could read it: it comes from a file, from
    standard input, or from a prompt that does not echo. No restart is needed. If the app was on hold because the
    provider rejected the registration, one account probes at once, and the others follow when it succeeds.

    While you change the secret at the provider, --keep-previous keeps the one in use as a spare: when the provider
    refuses one secret, the next one is tried, in order.

    \b
    Examples:
      tokenfleet apps set acme --client-id 123.apps.example --client-secret-file acme.secret
      pass show acme | tokenfleet apps set acme --client-id 123.apps.example --client-secret-file -
      tokenfleet apps set acme --client-id 123.apps.example --client-secret-file new.secret --keep-previous
      tokenfleet apps set oidc --client-id me --variable token_endpoint=https://sso.example/token
      tokenfleet apps set acme --platform --client-id 123.apps.example --client-secret-file acme.secret
      tokenfleet apps set acme --account customer-17 --client-id theirs --client-secret-file their.secret
    """
    from cli.session import database, load_providers, load_settings
    from store import app_secrets
    from store import apps as registrations
    from store.keys import open_vault

    if not client_id.strip():
        raise click.UsageError("--client-id is empty: give what the provider calls your client.")
    settings = load_settings()
    definition = load_providers(settings).get(provider)
    variables = _variables(definition, assignments, allow_http=settings.tunables.allow_http_providers)
    secret = _client_secret(definition, client_secret_file)
    with database(settings) as engine, engine.begin() as connection:
        before = registrations.find(connection, provider, environment, name)
        if keep_previous:
            _check_same_client(before, client_id, secret)
        app = registrations.register(
            connection,
            open_vault(connection, settings).refresh,
            provider=provider,
            environment=environment,
            name=name,
            client_id=client_id,
            client_secret=secret,
            variables=variables,
            keep_previous=keep_previous,
        )
        spare = len(app_secrets.spares(connection, app.app_id))
        tied = registrations.count_accounts(connection, app.app_id)
    done = "Registered" if before is None else "Replaced"
    click.echo(
        f"{done} {provider}/{environment}/{name}: client id {client_id}, "
        f"{'client secret sealed' if secret else 'no client secret'}"
        f"{', ' + counted(spare, 'spare secret') if spare else ''}; used by {counted(tied, 'account')}."
    )
    if before is not None and before.held_since is not None:
        click.echo(
            f"It is on hold because of {before.held_code}: one account probes now, "
            "and the others follow when it succeeds."
        )
    if missing := sorted(definition.required_variables() - variables.keys()):
        click.echo(f"Each account has to bring {', '.join(missing)} among its variables.")


def _check_same_client(before: App | None, client_id: str, secret: Secret | None) -> None:
    """Spare secrets are another client's if the client changes, and of no use to one without a secret."""
    if before is not None and before.client_id != client_id:
        raise click.UsageError(
            "--keep-previous keeps the secrets of one client, and this is another client id: leave it out."
        )
    if secret is None:
        raise click.UsageError("--keep-previous keeps secrets, and this client has none: leave it out.")


def _variables(definition: Provider, assignments: tuple[str, ...], *, allow_http: bool) -> dict[str, str]:
    """Return checked values, or say which assignment is wrong and why."""
    from tokenfleet.errors import UserError

    rules = definition.spec.variable_rules()
    declared = sorted(definition.spec.variables)
    variables: dict[str, str] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--variable {assignment!r} is not KEY=VALUE.")
        if name not in declared:
            known = f"it knows {', '.join(declared)}" if declared else "it has none"
            raise UserError(f"{definition.name} has no variable {name!r}: {known}")
        try:
            variables[name] = rules[name].check(value, allow_http=allow_http)
        except ValueError as error:
            raise UserError(f"variable {name} of {definition.name} {error}") from error
    return variables


def _client_secret(definition: Provider, file: IO[str] | None) -> Secret | None:
    """Read the secret from ``file`` or ask for it; None for a public client."""
    from tokenfleet.errors import UserError
    from tokenfleet_client.secret import Secret

    if definition.spec.client.authentication == "none":
        if file is not None:
            raise UserError(
                f"clients of {definition.name} authenticate without a secret: leave out --client-secret-file"
            )
        return None
    if file is not None:
        source = "standard input" if file.name in ("-", "<stdin>") else file.name
        try:
            text = file.read(MAX_SECRET_CHARACTERS + 1).strip()
        except UnicodeDecodeError:
            raise UserError(f"{source} does not hold a client secret: it is not UTF-8 text") from None
    elif sys.stdin.isatty():
        text = click.prompt("Client secret", hide_input=True, err=True).strip()
        source = "your answer"
    else:
        raise click.UsageError(
            f"Clients of {definition.name} have a secret: give --client-secret-file FILE, or - for standard "
            "input."
        )
    if not text or len(text) > MAX_SECRET_CHARACTERS or len(text.split()) > 1:
        raise UserError(f"{source} does not hold a client secret: one word, nothing else")
    return Secret(text)


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
        known = facts_of(connection, settings, [app.app_id for app in registered], now)
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
        facts = facts_of(connection, settings, [found.app_id], now)[found.app_id]
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
def remove(provider: str, environment: str, name: str) -> None:
    """Remove a registered client that no account uses any more.

    \b
    Example:
      tokenfleet apps remove acme --name old
    """
    from cli.session import database, load_settings
    from store import apps as registrations
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
