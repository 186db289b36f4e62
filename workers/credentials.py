"""The credentials of an app, opened for one job: its secret and its client certificate."""

from __future__ import annotations

from providers import ClientCredentials
from store.app_certificates import certificate_binding
from store.apps import App, secret_binding
from store.keys import Vault
from tokenfleet import telemetry
from tokenfleet.telemetry import Event
from tokenfleet_client.envelope import Binding
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose


def open_credentials(vault: Vault, app: App) -> ClientCredentials:
    """Open what ``app`` authenticates with.

    What cannot be opened raises an alarm and counts as absent, and the app is held for it.
    """
    certificate = None
    if app.certificate_generation is not None:
        binding = certificate_binding(app.app_id, app.certificate_generation)
        certificate = _opened(vault, app, app.client_certificate, binding)
    secret = _opened(vault, app, app.client_secret, secret_binding(app.app_id, app.secret_generation))
    return ClientCredentials(app.client_id, secret, certificate)


def _opened(vault: Vault, app: App, sealed: bytes | None, binding: Binding) -> Secret | None:
    if sealed is None:
        return None
    try:
        return Secret(vault.refresh.open(sealed, binding, Purpose.APP_SECRET))
    except EnvelopeError:
        telemetry.alarm(Event.SECRET_UNREADABLE, app_id=app.app_id)
        return None
