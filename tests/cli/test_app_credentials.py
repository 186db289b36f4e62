"""Signing keys and client certificates: checked when they are set, kept when others change, shown by nobody."""

from __future__ import annotations

from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from click import UsageError
from sqlalchemy import Engine

from cli.app_credentials import check_certificate, read_certificate, read_secret
from store import app_secrets, apps
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.providers.definitions import provider, toml
from tests.support.builders import now
from tests.support.pem import certificate_pem, ec_key, private_pem, rsa_key
from tokenfleet.errors import UserError
from workers.credentials import open_credentials

SIGNS = '[assertion]\nalgorithm = "RS256"\naudience = "https://auth.example.com"\n'
CLIENT = 'authentication = "private_key_jwt"\ncertificate = true'
BANK = provider(SIGNS, client=CLIENT)
KEY = private_pem(rsa_key())
CERTIFICATE = certificate_pem(ec_key(), subject="acme", days=90) + private_pem(ec_key())


def test_a_key_and_a_certificate_are_sealed_and_reach_the_workers(
    tokenfleet: Shell, engine: Engine, vault: Vault, tmp_path: Path
) -> None:
    (tmp_path / "example.toml").write_text(toml(SIGNS, client=CLIENT))
    pem, key = tmp_path / "acme.pem", tmp_path / "key.pem"
    pem.write_text(CERTIFICATE)
    key.write_text(f"\n{KEY}\n")
    tokenfleet.environ["TOKENFLEET_PROVIDERS_DIR"] = str(tmp_path)
    words = ("apps", "set", "example", "--client-id", "c", "--client-secret-file", str(key))

    def opened() -> tuple[str, str | None]:
        with engine.connect() as connection:
            app = apps.find(connection, "example", "production", "default")
        assert app is not None
        client = open_credentials(vault, app)
        assert client.client_secret is not None
        certificate = client.certificate.reveal().strip() if client.certificate is not None else None
        return client.client_secret.reveal(), certificate

    refused = tokenfleet(*words)
    assert (refused.exit_code, "give --client-certificate FILE" in refused.stderr) == (2, True)
    ran = tokenfleet(*words, "--client-certificate", str(pem))
    assert (ran.exit_code, "certificate sealed: CN=acme, valid until" in ran.stdout) == (0, True)
    assert opened() == (KEY.strip(), CERTIFICATE.strip())

    # A new key, a spare one that takes its turn: each is a new generation, and the certificate stays readable.
    again = tokenfleet(*words, "--keep-previous")
    assert "Client certificate kept." in again.stdout
    with engine.begin() as connection:
        app = apps.find(connection, "example", "production", "default")
        assert app is not None
        assert app_secrets.use_next(connection, app.app_id, refused_too=False)
    assert opened() == (KEY.strip(), CERTIFICATE.strip())

    shown, listed = tokenfleet("apps", "show", "example"), tokenfleet("apps", "list", "--json")
    assert "CN=acme, valid until" in shown.stdout
    seen = listed.document[0]["client_certificate"]
    assert seen["subject"] == "CN=acme"
    assert datetime.fromisoformat(seen["expires_at"]) > now() + timedelta(days=89)
    assert not any("PRIVATE" in each.stdout + each.stderr for each in (ran, again, shown, listed))

    (tmp_path / "example.toml").write_text(toml(SIGNS, client='authentication = "private_key_jwt"'))
    removed = tokenfleet(*words, "--no-client-certificate")
    assert "Client certificate removed." in removed.stdout
    assert opened() == (KEY.strip(), None)
    assert "client certificate" not in tokenfleet("apps", "show", "example").stdout


@pytest.mark.parametrize(
    ("algorithm", "text", "reason"),
    [
        ("RS256", "one-word", "the signing key in FILE is not a private key in PEM form"),
        ("RS256", private_pem(ec_key()), "the signing key in FILE is not an RSA key, which RS256 signs with"),
        ("ES256", "x" * 20_000, "FILE does not hold a signing key: it is longer than 16 KiB"),
        ("HS256", "two words", "FILE does not hold a client secret: one word, nothing else"),
    ],
)
def test_a_key_that_cannot_sign_is_refused_at_once(algorithm: str, text: str, reason: str) -> None:
    signing = provider(SIGNS.replace("RS256", algorithm), client=CLIENT)
    with pytest.raises(UserError) as caught:
        read_secret(signing, named(text))
    assert str(caught.value) == reason


def test_a_public_client_whose_templates_sign_has_a_secret() -> None:
    signed = provider(
        '[refresh.headers]\nX-Sign = "{sign}"\n'
        '[computed.sign]\nkind = "hmac_sha256"\nkey = "{client_secret}"\nof = "x"\n',
        client='authentication = "none"',
    )
    secret = read_secret(signed, named("hush"))
    assert secret is not None
    assert secret.reveal() == "hush"
    with pytest.raises(UserError, match="authenticate without a secret"):
        read_secret(provider(client='authentication = "none"'), named("hush"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "FILE holds no certificate in PEM form"),
        (
            certificate_pem(ec_key(), days=-3) + private_pem(ec_key()),
            "FILE holds a certificate that expired on",
        ),
        (certificate_pem(ec_key()) + private_pem(rsa_key()), "FILE does not fit its private key"),
        ("x" * 70_000, "FILE does not hold a client certificate: it is longer than 64 KiB"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused_at_once(text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        read_certificate(BANK, named(text))
    assert str(caught.value).startswith(reason)


def test_a_certificate_that_nobody_asks_for_is_refused() -> None:
    with pytest.raises(UserError, match="present no certificate: leave out --client-certificate"):
        read_certificate(provider(), named(CERTIFICATE))
    with pytest.raises(UsageError, match="contradict each other"):
        check_certificate(BANK, None, given=True, removed=True)


def named(text: str) -> StringIO:
    """Return a file called FILE that holds ``text``."""
    file = StringIO(text)
    file.name = "FILE"
    return file
