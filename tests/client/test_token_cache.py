"""Tokens in memory: never an expired one, never an older one over a newer one, and not more than were asked for."""

from __future__ import annotations

from types import MappingProxyType

from tokenfleet_client import Account, Secret, Token
from tokenfleet_client.token_cache import TokenCache


def token(account_id: int, generation: int = 1) -> Token:
    return Token(
        Secret(f"access-{generation}"), "bearer", None, None, generation, account_id, "acme", "production",
        f"c-{account_id}", None, MappingProxyType({}),
    )  # fmt: skip


def test_a_token_comes_out_while_it_lives_as_long_as_is_wanted_and_not_after() -> None:
    cache = TokenCache(10)
    cache.put(token(1), 100.0, asked=0.0)

    assert cache.fresh(1, validity=30.0, newer_than=0, now=70.0) == token(1)
    assert cache.fresh(1, validity=30.0, newer_than=0, now=70.1) is None
    assert cache.unexpired(1, newer_than=0, now=99.9) == token(1)
    assert cache.unexpired(1, newer_than=0, now=100.0) is None


def test_an_answer_that_comes_late_does_not_put_an_older_generation_in_place_of_a_newer_one() -> None:
    cache = TokenCache(10)
    cache.put(token(1, generation=5), 100.0, asked=0.0)
    cache.put(token(1, generation=4), 900.0, asked=0.0)

    held = cache.fresh(1, validity=0.0, newer_than=0, now=1.0)
    assert held is not None
    assert held.generation == 5


def test_the_one_that_was_used_least_goes_first_and_its_names_with_it() -> None:
    cache = TokenCache(2)
    for account_id in (1, 2):
        cache.put(token(account_id), None, asked=0.0)
    cache.fresh(Account("acme", "c-1"), validity=0.0, newer_than=0, now=1.0)
    cache.put(token(3), None, asked=0.0)

    found = [cache.fresh(account_id, validity=0.0, newer_than=0, now=1.0) for account_id in (1, 2, 3)]
    assert [each is not None for each in found] == [True, False, True]
    assert cache.fresh(Account("acme", "c-2"), validity=0.0, newer_than=0, now=1.0) is None
    assert len(cache) == 2


def test_names_that_moved_to_an_account_made_anew_are_not_lost_with_the_old_one() -> None:
    cache = TokenCache(10)
    old, new = token(1), token(2)
    new = Token(**{name: getattr(new, name) for name in Token.__slots__} | {"external_id": "c-1"})
    cache.put(old, None, asked=0.0)
    cache.put(new, None, asked=0.0)
    cache.drop(1, 1)

    assert cache.fresh(Account("acme", "c-1"), validity=0.0, newer_than=0, now=1.0) == new


def test_only_the_refused_generation_and_older_ones_are_dropped() -> None:
    cache = TokenCache(10)
    cache.put(token(1, generation=5), None, asked=0.0)

    cache.drop(1, 4)
    assert cache.fresh(1, validity=0.0, newer_than=4, now=1.0) is not None
    cache.drop(1, 5)
    assert cache.fresh(1, validity=0.0, newer_than=0, now=1.0) is None
