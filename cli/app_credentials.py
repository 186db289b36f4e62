"""What ``apps set`` takes in: a client secret or a signing key, and a client certificate.

Promise: each is checked at once, refused in one sentence without its text, and shown by no command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Final

import click

from cli.output import dated

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from providers import Provider
    from providers.certificates import CertificateFacts
    from store.apps import App
    from tokenfleet.jobs import AppId
    from tokenfleet.settings import Settings
    from tokenfleet_client.secret import Secret

MAX_SECRET_CHARACTERS: Final = 8192
MAX_KEY_CHARACTERS: Final = 16_384
"""A private key of 16,384 bits has 12,800."""
MAX_CERTIFICATE_CHARACTERS: Final = 65_536


def read_secret(definition: Provider, file: IO[str] | None) -> Secret | None:
    """Read the secret, or the signing key, from ``file`` or ask for it; None for clients that have none."""
    from providers.placement import secret_use
    from tokenfleet.errors import UserError
    from tokenfleet_client.secret import Secret

    use = secret_use(definition.spec)
    if use == "none":
        if file is not None:
            raise UserError(
                f"clients of {definition.name} authenticate without a secret: leave out --client-secret-file"
            )
        return None
    what = "signing key" if use == "signing_key" else "client secret"
    if file is not None:
        text, source = _text(file, MAX_KEY_CHARACTERS, what)
    elif sys.stdin.isatty() and use == "secret":
        text, source = click.prompt("Client secret", hide_input=True, err=True).strip(), "your answer"
    else:
        needed = "a secret" if use == "secret" else "a signing key: its private key as PEM"
        raise click.UsageError(
            f"Clients of {definition.name} have {needed}: give --client-secret-file FILE, or - for standard input."
        )
    if use == "signing_key":
        _check_key(definition, text, source)
    elif not text or len(text) > MAX_SECRET_CHARACTERS or len(text.split()) > 1:
        raise UserError(f"{source} does not hold a client secret: one word, nothing else")
    return Secret(text)


def read_certificate(definition: Provider, file: IO[str] | None) -> tuple[Secret, CertificateFacts] | None:
    """Read the client certificate from ``file`` and return it with its facts; None without a file."""
    from providers.certificates import CertificateError, inspect
    from tokenfleet.errors import UserError
    from tokenfleet_client.secret import Secret

    if file is None:
        return None
    if not definition.spec.client.certificate:
        raise UserError(
            f"clients of {definition.name} present no certificate: leave out --client-certificate"
        )
    text, source = _text(file, MAX_CERTIFICATE_CHARACTERS, "client certificate")
    if len(text) > MAX_CERTIFICATE_CHARACTERS:
        raise UserError(f"{source} does not hold a client certificate: it is longer than 64 KiB")
    pem = Secret(text + "\n")
    try:
        facts = inspect(pem)
    except CertificateError as error:
        raise UserError(f"{source} {error}") from None
    now = datetime.now(UTC)
    if facts.expires_at <= now:
        raise UserError(
            f"{source} holds a certificate that expired on {facts.expires_at:%Y-%m-%d}: get a new one"
        )
    if facts.not_before > now:
        raise UserError(
            f"{source} holds a certificate that is valid from {facts.not_before:%Y-%m-%d} on: set it then"
        )
    return pem, facts


def check_same_client(before: App | None, client_id: str, secret: Secret | None) -> None:
    """Spare secrets are another client's if the client changes, and of no use to one without a secret."""
    if before is not None and before.client_id != client_id:
        raise click.UsageError(
            "--keep-previous keeps the secrets of one client, and this is another client id: leave it out."
        )
    if secret is None:
        raise click.UsageError("--keep-previous keeps secrets, and this client has none: leave it out.")


def check_certificate(definition: Provider, before: App | None, *, given: bool, removed: bool) -> None:
    """Refuse a registration without the certificate that its definition needs."""
    if given and removed:
        raise click.UsageError("--client-certificate and --no-client-certificate contradict each other.")
    kept = before is not None and before.client_certificate is not None and not removed
    if definition.spec.client.certificate and not given and not kept:
        raise click.UsageError(
            f"Clients of {definition.name} present a certificate: give --client-certificate FILE, a PEM file with "
            "the certificate, its chain and its private key."
        )


def _check_key(definition: Provider, text: str, source: str) -> None:
    from providers.assertions import SigningKeyError, check_signing_key
    from tokenfleet.errors import UserError

    assertion = definition.spec.assertion
    assert assertion is not None
    if len(text) > MAX_KEY_CHARACTERS:
        raise UserError(f"{source} does not hold a signing key: it is longer than 16 KiB")
    try:
        check_signing_key(text, assertion.algorithm)
    except SigningKeyError as error:
        raise UserError(f"the signing key in {source} {error}") from None


def _text(file: IO[str], limit: int, what: str) -> tuple[str, str]:
    """Return at most a little more than ``limit`` characters of ``file``, and how to call it."""
    from tokenfleet.errors import UserError

    source = "standard input" if file.name in ("-", "<stdin>") else file.name
    try:
        return file.read(limit + 1).strip(), source
    except UnicodeDecodeError:
        raise UserError(f"{source} does not hold a {what}: it is not UTF-8 text") from None


@dataclass(frozen=True, slots=True)
class CertificateView:
    """A registered client certificate as people and programs see it; None where its keys are not at hand."""

    subject: str | None
    expires_at: datetime | None


def certificates_of(
    connection: Connection, settings: Settings, apps: Sequence[App]
) -> dict[AppId, CertificateView]:
    """Return the client certificates of ``apps``, of those that have one."""
    from providers.certificates import CertificateError, inspect
    from store.app_certificates import certificate_binding
    from store.keys import open_vault
    from tokenfleet.errors import UserError
    from tokenfleet_client.errors import EnvelopeError
    from tokenfleet_client.secret import Secret
    from tokenfleet_client.unsealings import Purpose

    found = {app.app_id: CertificateView(None, None) for app in apps if app.client_certificate is not None}
    if not found:
        return {}
    try:
        keys = open_vault(connection, settings).refresh
    except UserError:
        return found
    for app in apps:
        if app.client_certificate is None or app.certificate_generation is None:
            continue
        with suppress(EnvelopeError, CertificateError):
            binding = certificate_binding(app.app_id, app.certificate_generation)
            facts = inspect(Secret(keys.open(app.client_certificate, binding, Purpose.INSPECT)))
            found[app.app_id] = CertificateView(facts.subject, facts.expires_at)
    return found


def certificate_text(view: CertificateView | None, now: datetime) -> str:
    """Return what is known of a client certificate; nothing when there is none."""
    if view is None:
        return ""
    if view.expires_at is None:
        return "sealed; the keys that open it are not configured here"
    over = " (expired: set a new one)" if view.expires_at <= now else ""
    return f"{view.subject}, valid until {dated(view.expires_at, now)}{over}"
