"""The client certificate of an app (RFC 8705): one PEM text with its chain and private key, sealed as a secret is.

Invariant: it names the generation that it is sealed for, so that a new secret, an old release or the next spare secret,
each of which makes a new generation of the app, leaves it readable.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from tokenfleet.jobs import AppId
from tokenfleet_client.envelope import Binding, DataKeys, Ring
from tokenfleet_client.secret import Secret

_GENERATION = text("SELECT generation FROM tokenfleet.oauth_apps WHERE id = :app_id FOR NO KEY UPDATE")

_PUT = text("""
    UPDATE tokenfleet.oauth_apps SET client_certificate = :sealed, certificate_generation = :generation
    WHERE id = :app_id
""")


def certificate_binding(app_id: AppId, generation: int) -> Binding:
    """Return where the client certificate of one app's generation stands."""
    return Binding(Ring.REFRESH, f"app:{app_id}", "client_certificate", generation)


def put(connection: Connection, refresh_keys: DataKeys, app_id: AppId, certificate: Secret) -> None:
    """Give the app ``certificate`` in place of the one that it may have.

    In the transaction that registers the app (``store.apps.register``), which has made a new generation of it.
    """
    generation: int = connection.execute(_GENERATION, {"app_id": app_id}).scalar_one()
    sealed = refresh_keys.seal(certificate.reveal(), certificate_binding(app_id, generation))
    connection.execute(_PUT, {"app_id": app_id, "sealed": sealed, "generation": generation})


def remove(connection: Connection, app_id: AppId) -> None:
    """Take the certificate from the app."""
    connection.execute(_PUT, {"app_id": app_id, "sealed": None, "generation": None})
