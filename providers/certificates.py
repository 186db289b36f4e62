"""Client certificates (RFC 8705): what is in one, and a TLS context that presents it.

A certificate is one PEM text: the certificate, the rest of its chain, its private key. Promise: whatever is wrong with
it is one sentence without a value, and its key is on no disk for longer than the library takes to read it.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from tokenfleet_client.secret import Secret

MAX_INSPECTED: Final = 256
_MEMORY: Final = Path("/dev/shm")  # noqa: S108
_inspected: Final[OrderedDict[bytes, CertificateFacts]] = OrderedDict()
_lock: Final = Lock()


class CertificateError(ValueError):
    """The PEM text cannot be used. The message completes a sentence that begins with what it is."""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What people and the fleet want to know of a certificate; nothing of its key."""

    subject: str
    not_before: datetime
    expires_at: datetime


def digest_of(pem: Secret) -> bytes:
    """Return what tells one certificate from another."""
    return sha256(pem.reveal().encode()).digest()


def inspect(pem: Secret) -> CertificateFacts:
    """Return the facts of a certificate with its key. Raises :class:`CertificateError`. Remembers what it has seen."""
    digest = digest_of(pem)
    with _lock:
        facts = _inspected.get(digest)
        if facts is not None:
            _inspected.move_to_end(digest)
            return facts
    facts = _facts(pem.reveal().encode())
    with _lock:
        _inspected[digest] = facts
        if len(_inspected) > MAX_INSPECTED:
            _inspected.popitem(last=False)
    return facts


def load_into(context: ssl.SSLContext, pem: Secret) -> None:
    """Let connections of ``context`` present the certificate. Raises :class:`CertificateError`."""
    try:
        with _readable(pem) as path:
            # The password is for keys that have one: without it, OpenSSL would ask on the terminal and wait.
            context.load_cert_chain(path, password="")
    except (ssl.SSLError, OSError, ValueError):
        raise CertificateError("cannot be used for TLS") from None


@contextlib.contextmanager
def _readable(pem: Secret) -> Iterator[str]:
    """Yield the path of a file that holds ``pem``, in memory where there is a way, of mode 0600 everywhere."""
    data = pem.reveal().encode()
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    descriptor, name = tempfile.mkstemp(dir=_MEMORY if _MEMORY.is_dir() else None)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        yield name
    finally:
        Path(name).unlink()


def _facts(pem: bytes) -> CertificateFacts:
    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise CertificateError("holds no certificate in PEM form") from None
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise CertificateError(
            "has a key that is encrypted with a passphrase: store it without one"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(
            "holds no private key in PEM form: put certificate, chain and key into one file"
        ) from None
    own = [key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)]
    first = chain[0]
    if [first.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)] != own:
        raise CertificateError("does not fit its private key: the certificate of that key has to come first")
    return CertificateFacts(
        first.subject.rfc4514_string(), first.not_valid_before_utc, first.not_valid_after_utc
    )
