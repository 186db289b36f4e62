"""What is unusual, and what it probably is."""

from __future__ import annotations

import math
from random import Random
from typing import Final

import pytest

from tokenfleet.spikes import Answers, is_our_network, is_slow, spikes

CALM: Final = Answers(49_900, {("refresh.unavailable", "http_503"): 100}, 200.0)
OUTAGE: Final = ("refresh.unavailable", "http_503")


def test_an_outage_is_named_with_its_share_and_its_usual() -> None:
    [spike] = spikes(Answers(800, {OUTAGE: 200}), CALM)
    assert (spike.code, spike.failures, spike.share) == ("http_503", 200, 0.2)
    assert spike.usual == pytest.approx(0.002, rel=0.1)
    assert spike.probably == "an outage at the provider"


@pytest.mark.parametrize(
    "now",
    [
        Answers(),
        Answers(0, {OUTAGE: 9}),  # too few to speak of
        Answers(9_970, {OUTAGE: 30}),  # three times its usual is 60
        Answers(990, {OUTAGE: 10}, 9.0),  # not three times the rate, once chance is allowed for
    ],
)
def test_what_is_few_or_chance_is_no_spike(now: Answers) -> None:
    noisy = Answers(49_000, {OUTAGE: 1_000})
    assert spikes(now, noisy) == []


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(("attempts", "before"), [(100, 30), (1_000, 30), (1_000, 100), (5_000, 1_000)])
def test_what_a_small_past_has_not_shown_is_no_spike(rate: float, attempts: int, before: int) -> None:
    """The same share of failures, now and then: what chance makes of it is called a spike once in a thousand."""
    dice = Random(4711)

    def drawn(of: int) -> list[Answers]:
        """A thousand binomial draws."""
        logs = (math.lgamma(of + 1) - math.lgamma(n + 1) - math.lgamma(of - n + 1) for n in range(of + 1))
        weights = [
            math.exp(log + n * math.log(rate) + (of - n) * math.log(1 - rate)) for n, log in enumerate(logs)
        ]
        return [Answers(of - n, {OUTAGE: n}) for n in dice.choices(range(of + 1), weights, k=1_000)]

    pairs = zip(drawn(attempts), drawn(before), strict=True)
    assert sum(bool(spikes(now, usual)) for now, usual in pairs) <= 1


def test_ten_times_the_usual_is_found_in_a_few_hundred_attempts() -> None:
    usual = Answers(990, {OUTAGE: 10})
    assert spikes(Answers(270, {OUTAGE: 30}), usual)
    assert spikes(Answers(0, {OUTAGE: 10}), usual)


def test_what_two_accounts_suffer_from_is_not_called_their_providers() -> None:
    [few] = spikes(Answers(10, {OUTAGE: 96}, accounts={OUTAGE: 2}), CALM)
    assert (few.accounts, "not their provider" in few.probably) == (2, True)
    [many] = spikes(Answers(10, {OUTAGE: 96}, accounts={OUTAGE: 3}), CALM)
    assert many.probably == "an outage at the provider"


def test_counts_of_a_sample_are_told_of_the_whole() -> None:
    [spike] = spikes(Answers(800, {OUTAGE: 200}, sampled=0.1), CALM)
    assert (spike.failures, spike.share) == (2_000, 0.2)


def test_an_app_without_a_past_is_not_without_spikes() -> None:
    [spike] = spikes(Answers(10, {OUTAGE: 90}), Answers())
    assert (spike.code, spike.usual) == ("http_503", None)
    assert spikes(Answers(190, {OUTAGE: 10}), Answers()) == []


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("account.grant_rejected", "invalid_grant", "not the customers"),
        ("refresh.grant_rejected", "invalid_grant", "not the customers"),
        ("refresh.client_rejected", "invalid_client", "its secret was changed"),
        ("refresh.throttled", "http_429", "rate limit"),
        ("refresh.unavailable", "http_403", "firewall"),
        ("refresh.unknown", "unreadable_answer", "firewall"),
        ("refresh.unavailable", "dns_failed", "the way to the provider"),
        ("refresh.unknown", "timeout", "overloaded"),
        ("refresh.our_fault", "invalid_scope", "mistake of ours"),
        ("refresh.undescribed", "http_400", "unknowns"),
        ("probe.dead", "http_401", "ended before their time"),
    ],
)
def test_each_spike_has_a_name(kind: str, code: str, words: str) -> None:
    [spike] = spikes(Answers(0, {(kind, code): 100}), CALM)
    assert words in spike.probably


def test_three_providers_out_of_reach_at_once_are_our_network() -> None:
    cut = spikes(Answers(0, {("refresh.unavailable", "connect_failed"): 50}), CALM)
    down = spikes(Answers(0, {OUTAGE: 50}), CALM)
    assert is_our_network({"a": cut, "b": cut, "c": cut})
    assert not is_our_network({"a": cut, "b": cut, "c": down})
    assert not is_our_network({"a": cut, "b": cut, "c": []})
    # All there are.
    assert is_our_network({"a": cut, "b": cut})
    assert not is_our_network({"a": cut})
    assert not is_our_network({})


def test_slow_is_three_times_usual_and_half_a_second() -> None:
    assert is_slow(Answers(100, median_ms=700.0), CALM)
    assert not is_slow(Answers(100, median_ms=450.0), Answers(100, median_ms=100.0))
    assert not is_slow(Answers(100, median_ms=590.0), CALM)
    assert not is_slow(Answers(9, median_ms=9_000.0), CALM)
