"""Client certificates: what is wrong with one, and that each connection presents its own, seen by a real TLS server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from providers import certificates, channels
from providers.certificates import CertificateError, inspect, load_into
from providers.exchange import Answer, Failure, FailureKind, TokenRequest
from providers.transport import Transport
from tests.providers.raw_server import response
from tests.support.pem import AUTHORITY, LOOPBACK, certificate_pem, ec_key, private_pem, rsa_key
from tokenfleet_client.secret import Secret

AUTHORITY_KEY, SERVER = ec_key(100), ec_key(101)


def client_pem(subject: str, number: int) -> Secret:
    """Return a client certificate that the authority has signed, with its key."""
    return Secret(
        certificate_pem(ec_key(number), subject=subject, issuer=AUTHORITY_KEY) + private_pem(ec_key(number))
    )


ALPHA, BETA = client_pem("alpha", 1), client_pem("beta", 2)


class Door:
    """A TLS server that demands a client certificate. Keeps who came with each connection and each request."""

    def __init__(self, folder: Path) -> None:
        self._server_file, self.trusted = folder / "server.pem", folder / "trusted.pem"
        certificate = certificate_pem(SERVER)
        self._server_file.write_text(certificate + private_pem(SERVER))
        self.trusted.write_text(certificate)
        authority = folder / "authority.pem"
        authority.write_text(certificate_pem(AUTHORITY_KEY, subject=AUTHORITY))
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(self._server_file)
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._tls.load_verify_locations(authority)
        self.connections: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        server = await asyncio.start_server(self._serve, LOOPBACK, 0, ssl=self._tls)
        self.url = f"https://{LOOPBACK}:{server.sockets[0].getsockname()[1]}/"
        yield
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        subject = writer.get_extra_info("peercert")["subject"][0][0][1]
        self.connections.append(subject)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append((subject, head.split(b" ")[1].decode().strip("/")))
                writer.write(response())
                await writer.drain()
        writer.transport.abort()

    def request(self, path: str, certificate: Secret | None) -> TokenRequest:
        return TokenRequest("POST", self.url + path, {}, b"", certificate)


@contextlib.asynccontextmanager
async def trusting(door: Door) -> AsyncIterator[Transport]:
    http = Transport(
        timeout_seconds=10,
        max_connections=4,
        make_context=lambda: ssl.create_default_context(cafile=str(door.trusted)),
    )
    try:
        yield http
    finally:
        await http.aclose()


def test_requests_travel_over_connections_of_their_own_certificate(tmp_path: Path) -> None:
    door = Door(tmp_path)

    async def scenario() -> None:
        async with door.open(), trusting(door) as http:
            for _ in range(3):
                for subject, certificate in (("alpha", ALPHA), ("beta", BETA)):
                    assert isinstance(await http.ask(door.request(subject, certificate)), Answer)
            together = [
                http.ask(door.request(subject, certificate))
                for subject, certificate in (("alpha", ALPHA), ("beta", BETA)) * 4
            ]
            assert all(isinstance(one, Answer) for one in await asyncio.gather(*together))

    asyncio.run(scenario())
    assert len(door.requests) == 14
    assert all(subject == path for subject, path in door.requests)
    assert len(door.connections) <= 8


def test_without_a_certificate_nobody_is_let_in(tmp_path: Path) -> None:
    door = Door(tmp_path)

    async def scenario() -> None:
        async with door.open(), trusting(door) as http:
            assert isinstance(await http.ask(door.request("alpha", ALPHA)), Answer)
            assert isinstance(await http.ask(door.request("nobody", None)), Failure)
            broken = await http.ask(door.request("broken", Secret("no certificate")))
            assert broken == Failure(FailureKind.NOT_SENT, "client_certificate_unusable")

    asyncio.run(scenario())
    assert door.requests == [("alpha", "alpha")]


def test_unused_pools_are_closed_and_come_back_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "MAX_IDLE_CHANNELS", 1)
    door = Door(tmp_path)

    async def scenario() -> None:
        async with door.open(), trusting(door) as http:
            for subject, certificate in (
                ("alpha", ALPHA),
                ("alpha", ALPHA),
                ("beta", BETA),
                ("alpha", ALPHA),
            ):
                assert isinstance(await http.ask(door.request(subject, certificate)), Answer)

    asyncio.run(scenario())
    assert door.connections == ["alpha", "beta", "alpha"]


def test_a_pool_in_use_is_never_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "MAX_IDLE_CHANNELS", 0)

    async def scenario() -> None:
        pools = channels.Channels(max_connections=1, make_context=ssl.create_default_context)
        first, again = pools.take(ALPHA), pools.take(ALPHA)
        assert first is again
        pools.give_back(first)
        assert pools.take(ALPHA) is first
        pools.give_back(first)
        pools.give_back(first)
        assert pools.take(ALPHA) is not first
        await pools.aclose()

    asyncio.run(scenario())


@pytest.fixture(params=["memory", "file"])
def temporary(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a key would be written for a moment: in memory, or where there is no way to do that, in a folder."""
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr(certificates, "_MEMORY", tmp_path)
    return tmp_path


@pytest.mark.parametrize("pem", [ALPHA, Secret("no certificate")])
def test_the_key_is_on_no_disk_afterwards(temporary: Path, pem: Secret) -> None:
    descriptors = len(list(Path("/dev/fd").iterdir()))
    with contextlib.suppress(CertificateError):
        load_into(ssl.create_default_context(), pem)
    assert list(temporary.iterdir()) == []
    assert len(list(Path("/dev/fd").iterdir())) == descriptors


def test_the_file_of_a_key_is_its_owner_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(certificates, "_MEMORY", tmp_path)
    with certificates._readable(ALPHA) as path:
        assert Path(path).parent == tmp_path
        assert Path(path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (lambda: "nothing", "holds no certificate in PEM form"),
        (
            lambda: certificate_pem(ec_key()),
            "holds no private key in PEM form: put certificate, chain and key into one file",
        ),
        (
            lambda: certificate_pem(ec_key()) + private_pem(rsa_key()),
            "does not fit its private key: the certificate of that key has to come first",
        ),
        (
            lambda: certificate_pem(AUTHORITY_KEY) + certificate_pem(ec_key()) + private_pem(ec_key()),
            "does not fit its private key: the certificate of that key has to come first",
        ),
        (
            lambda: certificate_pem(ec_key()) + private_pem(ec_key(), passphrase="open sesame"),
            "has a key that is encrypted with a passphrase: store it without one",
        ),
    ],
)
def test_what_is_wrong_with_a_certificate_is_one_sentence(pem: object, reason: str) -> None:
    assert callable(pem)
    with pytest.raises(CertificateError) as caught:
        inspect(Secret(pem()))
    assert str(caught.value) == reason


def test_the_facts_of_a_certificate_are_whose_it_is_and_until_when() -> None:
    facts = inspect(Secret(private_pem(ec_key()) + certificate_pem(ec_key(), subject="acme", days=30)))
    assert facts.subject == "CN=acme"
    assert timedelta(days=29) < facts.expires_at - datetime.now(UTC) <= timedelta(days=30)
    assert "PRIVATE" not in repr(facts)
