"""``tokenfleet sandbox``: an authorization server to try things on."""

from __future__ import annotations

from typing import TextIO

import click

from sandbox import server
from sandbox.config import Rotation, SandboxConfig
from sandbox.definition import definition_toml
from tokenfleet.errors import UserError
from tokenfleet_client.secret import Secret


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=9321, show_default=True, type=click.IntRange(0, 65535), help="0 chooses one.")
@click.option(
    "--rotation",
    type=click.Choice([rotation.value for rotation in Rotation]),
    default=Rotation.ALWAYS.value,
    show_default=True,
    help="What a refresh does to the refresh token.",
)
@click.option("--grace", default=0.0, show_default=True, help="Seconds a spent token is still answered.")
@click.option("--lifetime", default=3600, show_default=True, help="Seconds an access token lives.")
@click.option("--latency-ms", default=0.0, show_default=True, help="Every answer waits so long.")
@click.option("--client-id", default="sandbox-client", show_default=True)
@click.option("--client-secret-file", type=click.File("r"), help="Else 'sandbox-client-secret'.")
@click.option("--seed", default=0, show_default=True, help="Decides which requests a fault hits.")
@click.option("--definition", is_flag=True, help="Print the provider definition for it (TOML) and end.")
@click.option("--insecure-remote", is_flag=True, help="Allow another address than this machine's own.")
def sandbox(
    host: str,
    port: int,
    rotation: str,
    grace: float,
    lifetime: int,
    latency_ms: float,
    client_id: str,
    client_secret_file: TextIO | None,
    seed: int,
    definition: bool,
    insecure_remote: bool,
) -> None:
    """Run an authorization server that rotates refresh tokens and keeps a ledger.

    It detects reuse, and misbehaves on request: POST /sandbox/faults. POST /sandbox/grants issues accounts in
    the import format, GET /sandbox/ledger says what was presented twice. It begins with acct-1 each time: a customer
    who is signed in again has a new grant, and the earlier one ends. For others say where to begin, {"count": 10,
    "first": 11}, or another "prefix".

    \b
    Example. Both variables are for every process of the fleet, so set them before 'tokenfleet up' too:
      export TOKENFLEET_PROVIDERS_DIR=$HOME/definitions TOKENFLEET_ALLOW_HTTP_PROVIDERS=true
      mkdir -p $HOME/definitions
      tokenfleet sandbox --port 9321 --definition > $HOME/definitions/sandbox.toml
      tokenfleet sandbox --port 9321 &
      echo sandbox-client-secret |
        tokenfleet apps set sandbox --client-id sandbox-client --client-secret-file -
      curl -s -d '{"count": 10}' http://127.0.0.1:9321/sandbox/grants | tokenfleet accounts import -

    \b
    A customer revokes, and the provider fails five times:
      curl -s -d '{"subjects": ["acct-1"]}' http://127.0.0.1:9321/sandbox/revoke
      curl -s -d '{"rules": [{"kind": "status_500", "count": 5}]}' http://127.0.0.1:9321/sandbox/faults
    """
    secret = client_secret_file.read().strip() if client_secret_file else "sandbox-client-secret"
    config = SandboxConfig(
        rotation=Rotation(rotation),
        grace_seconds=grace,
        access_lifetime_seconds=lifetime,
        latency_seconds=(latency_ms / 1000, latency_ms / 1000),
        client_id=client_id,
        client_secret=Secret(secret),
        seed=seed,
    )
    if definition:
        click.echo(definition_toml(f"http://{host}:{port}", config), nl=False)
        return

    if not insecure_remote:
        try:
            server.check_host(host)
        except UserError as error:
            raise click.UsageError(str(error)) from error

    def ready(url: str) -> None:
        click.echo(f"sandbox ready at {url}   token endpoint {url}/token   ledger {url}/sandbox/ledger")

    server.run(config, host=host, port=port, ready=ready, allow_remote=insecure_remote)
