"""Sealed values: AES-256-GCM, a key id in every ciphertext, every ciphertext bound to its place.

Layout, all integers big-endian::

    offset  length  meaning
    0       1       format version, 0x01
    1       4       data key id, unsigned
    5       12      nonce, random, fresh for every sealing
    17      n       ciphertext (same length as the plaintext)
    17+n    16      GCM tag

The associated data is the UTF-8 text ``tokenfleet/1/<ring>/<subject>/<field>/<generation>`` (see
:class:`Binding`), so a ciphertext that was moved to another account or column, or rolled back to an older
generation, does not open.

A data key at rest is ``nonce (12) || ciphertext (32) || tag (16)`` under a key-encryption key, with the
associated data ``tokenfleet/1/data-key/<ring>/<data key id>``. ``tests/vectors/envelope.json`` has examples
of both, and of what must be refused. A key service (:class:`KeyWrapper`) has its own format for it, bound to the same
associated data.

Random 96-bit nonces limit one data key to 2**32 sealings (NIST SP 800-38D, section 8.3); rotating data keys
in time is the key store's duty.
"""

from __future__ import annotations

import base64
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tokenfleet_client.errors import EnvelopeError, KeyMaterialError, UnknownKey
from tokenfleet_client.unsealings import Openings, Purpose

FORMAT_VERSION: Final = 1
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
HEADER_BYTES: Final = 1 + 4 + NONCE_BYTES

_VERSION_BYTE: Final = bytes([FORMAT_VERSION])
# Shorter than a key in any usual spelling: ids appear in messages, and a key in an id's place must not.
_KEY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class Ring(StrEnum):
    """Which family of keys seals a value."""

    ACCESS = "access"
    """Access tokens. Readers may hold it."""
    REFRESH = "refresh"
    """Refresh tokens and client secrets. Workers only."""


@dataclass(frozen=True, slots=True)
class Binding:
    """The one place where a ciphertext may stand.

    ``subject`` is ``account:<id>`` or ``app:<id>``; ``field`` the column; ``generation`` the row's
    generation at the time of sealing.
    """

    ring: Ring
    subject: str
    field: str
    generation: int

    def associated_data(self) -> bytes:
        """Return the bytes that AES-GCM authenticates beside the ciphertext."""
        return f"tokenfleet/1/{self.ring.value}/{self.subject}/{self.field}/{self.generation}".encode()


def access_token_binding(account_id: int, generation: int) -> Binding:
    """Return where the access token of one account's generation stands."""
    return Binding(Ring.ACCESS, f"account:{account_id}", "access_token", generation)


def refresh_token_binding(account_id: int, generation: int) -> Binding:
    """Return where the refresh token of one account's generation stands."""
    return Binding(Ring.REFRESH, f"account:{account_id}", "refresh_token", generation)


class DataKeys:
    """The unwrapped data keys of one ring. Seals with the primary one, opens with any it holds.

    ``sealings`` counts by key id what was sealed here, and ``openings`` by purpose what was opened; whoever adds them
    up elsewhere takes them from there.
    """

    __slots__ = ("_ciphers", "_header", "openings", "primary_id", "ring", "sealings")

    def __init__(self, ring: Ring, keys: Mapping[int, bytes], primary_id: int) -> None:
        """Hold ``keys`` (id to 32 bytes) of ``ring`` and seal with ``primary_id``.

        Raises :class:`KeyMaterialError` when a key has the wrong length or the primary is missing.
        """
        self._hold(ring, _ciphers_of(keys), primary_id)
        self.sealings: Counter[int] = Counter()
        self.openings = Openings()

    def _hold(self, ring: Ring, ciphers: dict[int, AESGCM], primary_id: int) -> None:
        if primary_id not in ciphers:
            raise KeyMaterialError(f"primary data key {primary_id} is not among the keys given")
        self.ring = ring
        self.primary_id = primary_id
        self._ciphers = ciphers
        self._header = _VERSION_BYTE + primary_id.to_bytes(4, "big")

    def __repr__(self) -> str:
        return f"DataKeys(ring={self.ring.value!r}, ids={sorted(self._ciphers)})"

    def seal(self, plaintext: str, binding: Binding) -> bytes:
        """Return ``plaintext`` sealed under the primary key and bound to ``binding``."""
        self.sealings[self.primary_id] += 1
        nonce = os.urandom(NONCE_BYTES)
        body = self._ciphers[self.primary_id].encrypt(nonce, plaintext.encode(), binding.associated_data())
        return self._header + nonce + body

    def open(self, envelope: bytes, binding: Binding, purpose: Purpose = Purpose.READ) -> str:
        """Return the plaintext of ``envelope``, and count that it was opened for ``purpose``.

        Raises :class:`UnknownKey` when its key is not held, :class:`EnvelopeError` when it is malformed,
        altered, or stands somewhere other than ``binding``.
        """
        cipher = self._ciphers.get(key_id_of(envelope))
        if cipher is None:
            raise UnknownKey(key_id_of(envelope))
        try:
            plaintext = cipher.decrypt(
                envelope[5:HEADER_BYTES], envelope[HEADER_BYTES:], binding.associated_data()
            )
        except InvalidTag:
            raise EnvelopeError(
                f"the sealed {binding.field} of {binding.subject}, generation {binding.generation}, was "
                "altered, or was sealed for another place"
            ) from None
        self.openings.count(purpose)
        return plaintext.decode()

    @property
    def key_ids(self) -> frozenset[int]:
        """The ids of the keys that are held."""
        return frozenset(self._ciphers)

    def renewed(self, keys: Mapping[int, bytes], kept: Iterable[int], primary_id: int) -> DataKeys:
        """Return a ring that holds ``keys``, and of those here the ``kept`` ones, and seals with ``primary_id``.

        Raises :class:`KeyMaterialError` when a key has the wrong length or the primary is missing.
        """
        held = {key_id: self._ciphers[key_id] for key_id in kept}
        renewed = DataKeys.__new__(DataKeys)
        renewed._hold(self.ring, held | _ciphers_of(keys), primary_id)  # noqa: SLF001 - one of our own kind
        renewed.sealings = self.sealings
        renewed.openings = self.openings
        return renewed

    def holds_key_of(self, envelope: bytes) -> bool:
        """Answer whether the key that ``envelope`` names is held; True for what is no envelope and names none."""
        try:
            return key_id_of(envelope) in self._ciphers
        except EnvelopeError:
            return True

    def needs_reseal(self, envelope: bytes) -> bool:
        """Answer whether ``envelope`` is sealed under another key than the primary one."""
        return key_id_of(envelope) != self.primary_id


def key_id_of(envelope: bytes) -> int:
    """Return the data key id that ``envelope`` names.

    Raises :class:`EnvelopeError` when it is too short or of another format version.
    """
    if len(envelope) < HEADER_BYTES + TAG_BYTES:
        raise EnvelopeError(f"the sealed value is truncated: {len(envelope)} bytes")
    if envelope[0] != FORMAT_VERSION:
        raise EnvelopeError(f"the sealed value has format version {envelope[0]}, not {FORMAT_VERSION}")
    return int.from_bytes(envelope[1:5], "big")


class KeyWrapper(Protocol):
    """What wraps data keys and nothing else: a key that this process holds, or one that a key service keeps to itself.

    What is wrapped opens for the same ring and data key id only.
    """

    @property
    def key_id(self) -> str:
        """The operator's name for it, up to 32 characters."""
        ...

    def wrap(self, data_key: bytes, ring: Ring, data_key_id: int) -> bytes:
        """Return ``data_key`` wrapped. Raises :class:`KeyServiceUnavailable`."""
        ...

    def unwrap(self, wrapped: bytes, ring: Ring, data_key_id: int) -> bytes:
        """Return the data key.

        Raises :class:`EnvelopeError` when this is not the key that wrapped it, and :class:`KeyServiceUnavailable`.
        """
        ...

    def is_outdated(self, wrapped: bytes) -> bool:
        """Answer whether ``wrapped`` is under an older version of this key. Raises :class:`KeyServiceUnavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class KeyEncryptionKey:
    """A key that wraps data keys and nothing else. ``key_id`` is the operator's name for it."""

    key_id: str
    _key: bytes

    def __repr__(self) -> str:
        return f"KeyEncryptionKey({self.key_id!r})"

    @classmethod
    def parse(cls, text: str) -> KeyEncryptionKey:
        """Read ``id:base64``. Raises :class:`KeyMaterialError`, which never repeats the key."""
        key_id, separator, encoded = text.strip().partition(":")
        check_key_id(key_id if separator else "")
        try:
            key = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise KeyMaterialError(f"key-encryption key {key_id!r} is not valid base64") from None
        if len(key) != KEY_BYTES:
            raise KeyMaterialError(
                f"key-encryption key {key_id!r} has {len(key)} bytes instead of {KEY_BYTES}: "
                "make one with 'tokenfleet keys generate'"
            )
        return cls(key_id, key)

    @classmethod
    def generate(cls, key_id: str) -> KeyEncryptionKey:
        """Return a new random key."""
        return cls(key_id, os.urandom(KEY_BYTES))

    def export(self) -> str:
        """Return ``id:base64``, the form that :meth:`parse` reads. This is the secret itself."""
        return f"{self.key_id}:{base64.b64encode(self._key).decode()}"

    def wrap(self, data_key: bytes, ring: Ring, data_key_id: int) -> bytes:
        """Return ``nonce || ciphertext || tag`` of ``data_key``, bound to its ring and id."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + AESGCM(self._key).encrypt(nonce, data_key, wrapping_data(ring, data_key_id))

    def unwrap(self, wrapped: bytes, ring: Ring, data_key_id: int) -> bytes:
        """Return the data key. Raises :class:`EnvelopeError` when this is not the key that wrapped it."""
        try:
            return AESGCM(self._key).decrypt(
                wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], wrapping_data(ring, data_key_id)
            )
        except (InvalidTag, ValueError):
            raise not_wrapped_by(self.key_id, ring, data_key_id) from None

    def is_outdated(self, wrapped: bytes) -> bool:
        """Answer False: a key of ours has one version."""
        return False


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key at rest: a row of ``data_keys``, or of the contract's ``access_keys`` view."""

    data_key_id: int
    ring: Ring
    kek_id: str
    wrapped: bytes
    is_primary: bool


def unwrap_ring(
    ring: Ring, rows: Iterable[WrappedKey], keks: Mapping[str, KeyWrapper], held: DataKeys | None = None
) -> DataKeys:
    """Return the usable keys of ``ring``. What ``held`` holds already is taken from there and not unwrapped again.

    Raises :class:`EnvelopeError` when ``rows`` hold no primary key for the ring, or the primary's
    key-encryption key is not among ``keks`` or did not wrap it, and :class:`KeyServiceUnavailable`. Another data key
    of which that is true is left out: values under it raise :class:`UnknownKey` when opened.
    """
    keys: dict[int, bytes] = {}
    kept: set[int] = set()
    primary_id: int | None = None
    for row in rows:
        if row.ring is not ring:
            continue
        if row.is_primary:
            primary_id = row.data_key_id
        if held is not None and row.data_key_id in held.key_ids:
            kept.add(row.data_key_id)
            continue
        kek = keks.get(row.kek_id)
        if kek is not None:
            try:
                keys[row.data_key_id] = kek.unwrap(row.wrapped, ring, row.data_key_id)
            except EnvelopeError:
                # One damaged row of years ago must not keep every process from starting.
                if row.is_primary:
                    raise
        elif row.is_primary:
            raise EnvelopeError(
                f"the {ring.value} ring is wrapped by key-encryption key {row.kek_id!r}, which is not "
                f"configured here (configured: {', '.join(sorted(keks)) or 'none'})"
            )
    if primary_id is None:
        raise EnvelopeError(f"the database holds no primary data key for the {ring.value} ring")
    return DataKeys(ring, keys, primary_id) if held is None else held.renewed(keys, kept, primary_id)


def check_key_id(key_id: str) -> None:
    """Return when ``key_id`` may name a key-encryption key. Raises :class:`KeyMaterialError`."""
    if not _KEY_ID.fullmatch(key_id):
        raise KeyMaterialError(
            "a key-encryption key is written id:base64, the id in up to 32 letters, digits, . _ -"
        )


def wrapping_data(ring: Ring, data_key_id: int) -> bytes:
    """Return the associated data of a wrapped key: under another ring or id it does not open."""
    return f"tokenfleet/1/data-key/{ring.value}/{data_key_id}".encode()


def not_wrapped_by(key_id: str, ring: Ring, data_key_id: int) -> EnvelopeError:
    """Return the error for a data key that key-encryption key ``key_id`` has not wrapped."""
    return EnvelopeError(
        f"data key {data_key_id} of the {ring.value} ring does not open with key-encryption key "
        f"{key_id!r}: is this another ring's key, or another installation's?"
    )


def _ciphers_of(keys: Mapping[int, bytes]) -> dict[int, AESGCM]:
    for key_id, key in keys.items():
        if len(key) != KEY_BYTES:
            raise KeyMaterialError(f"data key {key_id} has {len(key)} bytes instead of {KEY_BYTES}")
    return {key_id: AESGCM(key) for key_id, key in keys.items()}
