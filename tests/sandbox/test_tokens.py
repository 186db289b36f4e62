"""Tokens are recognized by their writer, and by nobody's guess."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.tokens import AccessTokenRef, Mint, RefreshTokenRef, fingerprint
from tokenfleet_client.secret import Secret

numbers = st.integers(min_value=0, max_value=2**40)


@given(family=numbers, number=numbers)
def test_a_mint_recognizes_the_refresh_tokens_it_wrote(family: int, number: int) -> None:
    mint = Mint()
    ref = RefreshTokenRef(family, number)
    assert mint.read_refresh_token(mint.refresh_token(ref)) == ref


@given(family=numbers, number=numbers, expires_at_ms=numbers)
def test_a_mint_recognizes_the_access_tokens_it_wrote(family: int, number: int, expires_at_ms: int) -> None:
    mint = Mint()
    ref = AccessTokenRef(family, number, expires_at_ms)
    assert mint.read_access_token(mint.access_token(ref)) == ref


@given(text=st.text())
def test_no_other_text_is_a_token(text: str) -> None:
    mint = Mint()
    assert mint.read_refresh_token(Secret(text)) is None
    assert mint.read_access_token(Secret(text)) is None


@pytest.mark.parametrize("position", range(14))
def test_an_altered_token_is_no_token(position: int) -> None:
    mint = Mint()
    token = mint.refresh_token(RefreshTokenRef(1, 1)).reveal()
    altered = token[:position] + chr(ord(token[position]) ^ 1) + token[position + 1 :]
    assert mint.read_refresh_token(Secret(altered)) is None


def test_another_mint_does_not_recognize_it() -> None:
    assert Mint().read_refresh_token(Mint().refresh_token(RefreshTokenRef(0, 0))) is None


def test_one_kind_of_token_is_not_read_as_the_other() -> None:
    mint = Mint()
    assert mint.read_access_token(mint.refresh_token(RefreshTokenRef(0, 0))) is None
    assert mint.read_refresh_token(mint.access_token(AccessTokenRef(0, 0, 0))) is None


def test_a_fingerprint_is_the_sha_256_of_the_token() -> None:
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert fingerprint(Secret("abc")) == expected
