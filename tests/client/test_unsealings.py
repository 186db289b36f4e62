"""Every value that a ring opens is counted, by purpose, once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from tokenfleet_client.envelope import DataKeys, Ring, access_token_binding
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.unsealings import Openings, Purpose

KEY = bytes(range(32))
PLACE = access_token_binding(1, 1)


@pytest.fixture
def ring() -> DataKeys:
    return DataKeys(Ring.ACCESS, {1: KEY}, 1)


def test_what_is_opened_is_counted_by_its_purpose_and_a_reader_need_not_name_one(ring: DataKeys) -> None:
    sealed = ring.seal("example", PLACE)
    ring.open(sealed, PLACE)
    ring.open(sealed, PLACE)
    ring.open(sealed, PLACE, Purpose.PROBE)
    assert ring.openings.take() == {Purpose.READ: 2, Purpose.PROBE: 1}
    assert ring.openings.take() == {}


def test_what_does_not_open_told_nobody_anything_and_is_not_counted(ring: DataKeys) -> None:
    sealed = ring.seal("example", PLACE)
    for envelope, place in ((sealed, access_token_binding(2, 1)), (b"x", PLACE), (sealed[:-1] + b"x", PLACE)):
        with pytest.raises(EnvelopeError):
            ring.open(envelope, place)
    assert ring.openings.take() == {}


def test_a_ring_with_new_keys_goes_on_with_the_count(ring: DataKeys) -> None:
    ring.open(ring.seal("example", PLACE), PLACE)
    renewed = ring.renewed({2: KEY}, [1], 2)
    renewed.open(renewed.seal("example", PLACE), PLACE)
    assert renewed.openings.take() == {Purpose.READ: 2}


class Slow(str):
    """A purpose that lets another thread go first whenever it is looked up."""

    __slots__ = ()

    def __hash__(self) -> int:
        time.sleep(0.0001)
        return super().__hash__()


def test_threads_that_open_while_somebody_takes_lose_no_count() -> None:
    openings = Openings()
    taken = 0

    def open_many() -> None:
        for _ in range(25):
            openings.count(cast("Purpose", Slow("read")))

    with ThreadPoolExecutor(8) as pool:
        working = [pool.submit(open_many) for _ in range(8)]
        while not all(each.done() for each in working):
            taken += sum(openings.take().values())
            time.sleep(0.001)
    for each in working:
        each.result()
    taken += sum(openings.take().values())
    assert taken == 8 * 25
