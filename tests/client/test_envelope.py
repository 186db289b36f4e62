"""Sealed values: the published vectors, the layout, and everything that must not open.

The vectors were computed by another implementation. They are read here twice: by the module, and by a reader
written from its documentation alone, which shares no code with it.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet_client.envelope import (
    HEADER_BYTES,
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    Binding,
    DataKeys,
    KeyEncryptionKey,
    Ring,
    WrappedKey,
    access_token_binding,
    key_id_of,
    refresh_token_binding,
    unwrap_ring,
)
from tokenfleet_client.errors import EnvelopeError, KeyMaterialError, UnknownKey

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "envelope.json").read_text(encoding="utf-8")
)
SEALED: list[dict[str, Any]] = VECTORS["sealed"]
REFUSED: list[dict[str, Any]] = VECTORS["refused"]
DATA_KEYS: list[dict[str, Any]] = VECTORS["data_keys"]

KEY = bytes(range(KEY_BYTES))
OTHER_KEY = bytes(range(1, KEY_BYTES + 1))
PLACE = access_token_binding(42, 7)

texts = st.text(st.characters(exclude_categories=["Cs"]))
key_ids = st.integers(min_value=0, max_value=2**32 - 1)
bindings = st.builds(
    Binding,
    ring=st.sampled_from(Ring),
    subject=st.builds("{}:{}".format, st.sampled_from(["account", "app"]), st.integers(1, 2**63 - 1)),
    field=st.sampled_from(["access_token", "refresh_token", "client_secret"]),
    generation=st.integers(0, 2**63 - 1),
)


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def keys_of(vectors: list[dict[str, Any]]) -> dict[tuple[str, int], bytes]:
    return {(row["ring"], row["data_key_id"]): bytes.fromhex(row["data_key"]) for row in vectors}


def binding_of(vector: dict[str, Any]) -> Binding:
    return Binding(Ring(vector["ring"]), vector["subject"], vector["field"], vector["generation"])


def ring_of(name: str) -> DataKeys:
    """The ring as a reader gets it: wrapped rows, and the key-encryption key from its configuration."""
    kek = KeyEncryptionKey.parse(VECTORS["key_encryption_keys"][name])
    rows = [
        WrappedKey(
            data_key_id=row["data_key_id"],
            ring=Ring(row["ring"]),
            kek_id=row["kek_id"],
            wrapped=bytes.fromhex(row["wrapped"]),
            is_primary=row["is_primary"],
        )
        for row in DATA_KEYS
    ]
    return unwrap_ring(Ring(name), rows, {kek.key_id: kek})


def decrypt(key: bytes, nonce: bytes, ciphertext: bytes, tag: bytes, associated_data: bytes) -> bytes:
    """AES-256-GCM by the cipher's own parts, as a program in another language would call it."""
    decryptor = Cipher(algorithms.AES256(key), modes.GCM(nonce, tag)).decryptor()
    decryptor.authenticate_additional_data(associated_data)
    return decryptor.update(ciphertext) + decryptor.finalize()


# The published vectors


@pytest.mark.parametrize("vector", named(SEALED))
def test_a_published_value_opens(vector: dict[str, Any]) -> None:
    ring = ring_of(vector["ring"])
    assert ring.open(bytes.fromhex(vector["envelope"]), binding_of(vector)) == vector["plaintext"]


@pytest.mark.parametrize("vector", named(SEALED))
def test_a_reader_written_from_the_documentation_opens_a_published_value(vector: dict[str, Any]) -> None:
    envelope = bytes.fromhex(vector["envelope"])
    version, key_id = struct.unpack(">BI", envelope[:5])
    place = "{ring}/{subject}/{field}/{generation}".format(**vector)
    associated_data = f"tokenfleet/1/{place}"
    plaintext = decrypt(
        keys_of(DATA_KEYS)[vector["ring"], key_id],
        envelope[5:17],
        envelope[17:-16],
        envelope[-16:],
        associated_data.encode(),
    )
    assert version == VECTORS["format_version"]
    assert key_id == vector["data_key_id"]
    assert envelope[5:17].hex() == vector["nonce"]
    assert associated_data == vector["associated_data"]
    assert plaintext.decode() == vector["plaintext"]


@pytest.mark.parametrize("vector", named(SEALED))
def test_the_associated_data_is_the_published_text(vector: dict[str, Any]) -> None:
    assert binding_of(vector).associated_data() == vector["associated_data"].encode()


@pytest.mark.parametrize("vector", named(REFUSED))
def test_a_value_that_must_be_refused_does_not_open(vector: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeError):
        ring_of(vector["ring"]).open(bytes.fromhex(vector["envelope"]), binding_of(vector))


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{row['ring']}-{row['data_key_id']}") for row in DATA_KEYS]
)
def test_a_reader_written_from_the_documentation_unwraps_a_published_key(row: dict[str, Any]) -> None:
    _, _, encoded = VECTORS["key_encryption_keys"][row["ring"]].partition(":")
    wrapped = bytes.fromhex(row["wrapped"])
    associated_data = f"tokenfleet/1/data-key/{row['ring']}/{row['data_key_id']}"
    data_key = decrypt(
        base64.b64decode(encoded), wrapped[:12], wrapped[12:-16], wrapped[-16:], associated_data.encode()
    )
    assert associated_data == row["associated_data"]
    assert data_key.hex() == row["data_key"]


def test_the_published_values_cover_every_ring_and_an_older_key() -> None:
    primaries = {(row["ring"], row["data_key_id"]) for row in DATA_KEYS if row["is_primary"]}
    assert {vector["ring"] for vector in SEALED} == set(Ring)
    assert any((vector["ring"], vector["data_key_id"]) not in primaries for vector in SEALED)


# The layout


@given(plaintext=texts, binding=bindings, key_id=key_ids)
def test_what_is_sealed_opens_at_its_place(plaintext: str, binding: Binding, key_id: int) -> None:
    ring = DataKeys(binding.ring, {key_id: KEY}, key_id)
    envelope = ring.seal(plaintext, binding)
    assert ring.open(envelope, binding) == plaintext
    assert key_id_of(envelope) == key_id
    assert len(envelope) == HEADER_BYTES + len(plaintext.encode()) + TAG_BYTES


@given(binding=bindings, elsewhere=bindings)
def test_what_is_sealed_opens_nowhere_else(binding: Binding, elsewhere: Binding) -> None:
    ring = DataKeys(binding.ring, {1: KEY}, 1)
    envelope = ring.seal("example", binding)
    if elsewhere == binding:
        assert ring.open(envelope, elsewhere) == "example"
    else:
        with pytest.raises(EnvelopeError):
            ring.open(envelope, elsewhere)


@given(binding=bindings, elsewhere=bindings)
def test_two_places_never_share_their_associated_data(binding: Binding, elsewhere: Binding) -> None:
    assert (binding == elsewhere) == (binding.associated_data() == elsewhere.associated_data())


@given(data=st.data())
def test_an_altered_byte_never_opens(data: st.DataObject) -> None:
    ring = DataKeys(Ring.ACCESS, {1: KEY}, 1)
    envelope = bytearray(ring.seal("example access token", PLACE))
    position = data.draw(st.integers(0, len(envelope) - 1))
    envelope[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(EnvelopeError):
        ring.open(bytes(envelope), PLACE)


@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused_and_never_a_crash(garbage: bytes) -> None:
    with pytest.raises(EnvelopeError):
        DataKeys(Ring.ACCESS, {1: KEY}, 1).open(garbage, PLACE)


def test_the_same_value_sealed_twice_has_two_nonces() -> None:
    ring = DataKeys(Ring.ACCESS, {1: KEY}, 1)
    nonces = {ring.seal("example", PLACE)[5 : 5 + NONCE_BYTES] for _ in range(100)}
    assert len(nonces) == 100


def test_an_error_names_the_place_and_not_the_value() -> None:
    ring = DataKeys(Ring.ACCESS, {1: KEY}, 1)
    envelope = ring.seal("planted-value", PLACE)
    with pytest.raises(EnvelopeError) as refusal:
        ring.open(envelope, access_token_binding(43, 7))
    assert "account:43" in str(refusal.value)
    assert "planted-value" not in str(refusal.value)
    assert refusal.value.__cause__ is None


# Rings and their keys


def test_the_newest_key_seals_and_an_older_one_still_opens() -> None:
    older = DataKeys(Ring.ACCESS, {1: KEY}, 1)
    both = DataKeys(Ring.ACCESS, {1: KEY, 2: OTHER_KEY}, 2)
    old_envelope = older.seal("example", PLACE)
    assert both.open(old_envelope, PLACE) == "example"
    assert both.needs_reseal(old_envelope)
    assert key_id_of(both.seal("example", PLACE)) == 2
    assert not both.needs_reseal(both.seal("example", PLACE))


def test_an_unknown_key_is_named() -> None:
    envelope = DataKeys(Ring.ACCESS, {9: KEY}, 9).seal("example", PLACE)
    with pytest.raises(UnknownKey) as refusal:
        DataKeys(Ring.ACCESS, {1: KEY}, 1).open(envelope, PLACE)
    assert refusal.value.key_id == 9


def test_a_ring_without_its_primary_is_refused() -> None:
    with pytest.raises(KeyMaterialError, match="primary data key 2"):
        DataKeys(Ring.ACCESS, {1: KEY}, 2)


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_a_data_key_that_is_not_32_bytes_is_refused(length: int) -> None:
    with pytest.raises(KeyMaterialError, match=f"has {length} bytes"):
        DataKeys(Ring.ACCESS, {1: bytes(length)}, 1)


def test_neither_keys_nor_rings_print_their_bytes() -> None:
    kek = KeyEncryptionKey("example", KEY)
    shown = f"{DataKeys(Ring.ACCESS, {1: KEY}, 1)!r} {kek!r} {kek} {[kek]}"
    assert KEY.hex() not in shown
    assert repr(KEY) not in shown
    assert kek.export().partition(":")[2] not in shown


def test_refresh_tokens_and_access_tokens_stand_in_different_rings() -> None:
    assert access_token_binding(1, 1).ring is Ring.ACCESS
    assert refresh_token_binding(1, 1).ring is Ring.REFRESH


# Key-encryption keys


def test_a_generated_key_survives_export_and_parse() -> None:
    kek = KeyEncryptionKey.generate("2026-01")
    assert KeyEncryptionKey.parse(kek.export()) == kek
    assert KeyEncryptionKey.parse(f"  {kek.export()}\n") == kek


@given(text=st.text(max_size=80))
def test_parsing_refuses_anything_else_in_one_way(text: str) -> None:
    try:
        kek = KeyEncryptionKey.parse(text)
    except KeyMaterialError:
        return
    assert KeyEncryptionKey.parse(kek.export()) == kek


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no-separator",
        ":" + base64.b64encode(KEY).decode(),
        "has a space:" + base64.b64encode(KEY).decode(),
        "example:",
        "example:not base64!",
        "example:ключ",
        "example:" + base64.b64encode(KEY[:16]).decode(),
        "example:" + base64.b64encode(KEY + KEY).decode(),
    ],
)
def test_a_malformed_key_encryption_key_is_refused(text: str) -> None:
    with pytest.raises(KeyMaterialError):
        KeyEncryptionKey.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("example:" + base64.b64encode(KEY + b"!").decode(), id="too long"),
        pytest.param(base64.b64encode(KEY).decode() + ":example", id="the wrong way round"),
        pytest.param(
            base64.urlsafe_b64encode(KEY).decode().rstrip("=") + ":example", id="... and without padding"
        ),
        pytest.param(base64.b64encode(KEY).decode(), id="without an id"),
    ],
)
def test_a_refused_key_is_never_repeated(text: str) -> None:
    with pytest.raises(KeyMaterialError) as refusal:
        KeyEncryptionKey.parse(text)
    assert base64.b64encode(KEY).decode()[:16] not in str(refusal.value)


@given(data_key=st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), data_key_id=key_ids)
def test_a_wrapped_key_opens_only_in_its_ring_under_its_id(data_key: bytes, data_key_id: int) -> None:
    kek = KeyEncryptionKey("example", KEY)
    wrapped = kek.wrap(data_key, Ring.ACCESS, data_key_id)
    assert kek.unwrap(wrapped, Ring.ACCESS, data_key_id) == data_key
    for ring, other_id in ((Ring.REFRESH, data_key_id), (Ring.ACCESS, data_key_id + 1)):
        with pytest.raises(EnvelopeError):
            kek.unwrap(wrapped, ring, other_id)


def test_another_installations_key_is_reported_as_such() -> None:
    wrapped = KeyEncryptionKey("example", KEY).wrap(OTHER_KEY, Ring.ACCESS, 1)
    with pytest.raises(EnvelopeError, match="another installation's"):
        KeyEncryptionKey("example", OTHER_KEY).unwrap(wrapped, Ring.ACCESS, 1)


@given(garbage=st.binary(max_size=80))
def test_a_truncated_wrapped_key_is_refused(garbage: bytes) -> None:
    with pytest.raises(EnvelopeError):
        KeyEncryptionKey("example", KEY).unwrap(garbage, Ring.ACCESS, 1)


def wrapped_key(kek: KeyEncryptionKey, ring: Ring, data_key_id: int, *, primary: bool) -> WrappedKey:
    return WrappedKey(data_key_id, ring, kek.key_id, kek.wrap(KEY, ring, data_key_id), primary)


def test_a_ring_takes_only_its_own_rows() -> None:
    kek = KeyEncryptionKey("example", KEY)
    rows = [wrapped_key(kek, Ring.REFRESH, 1, primary=True), wrapped_key(kek, Ring.ACCESS, 2, primary=True)]
    access = unwrap_ring(Ring.ACCESS, rows, {"example": kek})
    assert access.primary_id == 2
    with pytest.raises(UnknownKey):
        access.open(DataKeys(Ring.ACCESS, {1: KEY}, 1).seal("example", PLACE), PLACE)


def test_a_missing_key_encryption_key_of_the_primary_is_named_with_those_at_hand() -> None:
    absent, present = KeyEncryptionKey("absent", KEY), KeyEncryptionKey("present", OTHER_KEY)
    rows = [wrapped_key(absent, Ring.ACCESS, 1, primary=True)]
    with pytest.raises(EnvelopeError, match=r"'absent'.*configured: present"):
        unwrap_ring(Ring.ACCESS, rows, {"present": present})
    with pytest.raises(EnvelopeError, match="configured: none"):
        unwrap_ring(Ring.ACCESS, rows, {})


def test_an_older_key_without_its_key_encryption_key_is_left_out() -> None:
    retired, current = KeyEncryptionKey("retired", OTHER_KEY), KeyEncryptionKey("current", KEY)
    rows = [
        wrapped_key(retired, Ring.ACCESS, 1, primary=False),
        wrapped_key(current, Ring.ACCESS, 2, primary=True),
    ]
    ring = unwrap_ring(Ring.ACCESS, rows, {"current": current})
    assert ring.open(ring.seal("example", PLACE), PLACE) == "example"
    with pytest.raises(UnknownKey):
        ring.open(DataKeys(Ring.ACCESS, {1: KEY}, 1).seal("example", PLACE), PLACE)


def test_a_ring_without_any_primary_row_is_refused() -> None:
    kek = KeyEncryptionKey("example", KEY)
    rows = [wrapped_key(kek, Ring.ACCESS, 1, primary=False)]
    with pytest.raises(EnvelopeError, match="no primary data key for the access ring"):
        unwrap_ring(Ring.ACCESS, rows, {"example": kek})
