"""Which workers lack a key: asked before it seals or wraps anything."""

from __future__ import annotations

from sqlalchemy import Engine, text

from store import key_holders
from tests.support.builders import column
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import Ring


def test_living_workers_that_lack_a_key_are_named_until_they_have_it_or_are_gone(
    engine: Engine, settings: Settings
) -> None:
    rings = (settings.access_ring, settings.refresh_ring)
    with engine.begin() as connection:
        key_holders.tell(connection, "one", rings, {1, 2}, {1, 2})
        key_holders.tell(connection, "two", rings, {1, 2, 3}, {2, 3})
        key_holders.tell(connection, "reader", (settings.access_ring,), {1, 3}, {3})
        assert key_holders.behind(connection, {2, 3}) == ["one", "reader"]
        assert key_holders.any_living(connection)
        assert key_holders.lacking_data_key(connection, 3) == ["one"]
        assert key_holders.lacking_kek(connection, Ring.REFRESH, "test") == ["reader"]
        assert key_holders.lacking_kek(connection, Ring.ACCESS, "new") == ["one", "reader", "two"]
        key_holders.tell(connection, "one", rings, {1, 2, 3}, {1, 2})
        assert key_holders.lacking_data_key(connection, 3) == []
        connection.execute(
            text("UPDATE tokenfleet.key_holders SET seen_at = seen_at - CAST(:ago AS interval)"),
            {"ago": key_holders.ALIVE_FOR},
        )
        assert key_holders.lacking_kek(connection, Ring.ACCESS, "new") == []
        assert key_holders.behind(connection, {2, 3}) == []
        assert not key_holders.any_living(connection)


def test_a_worker_that_is_long_gone_is_forgotten(engine: Engine, settings: Settings) -> None:
    with engine.begin() as connection:
        for process in ("gone", "back"):
            key_holders.tell(connection, process, (settings.access_ring,), {1}, {1})
        connection.execute(
            text("UPDATE tokenfleet.key_holders SET seen_at = seen_at - 2 * CAST(:ago AS interval)"),
            {"ago": key_holders.FORGOTTEN_AFTER},
        )
    with engine.begin() as connection:
        key_holders.tell(connection, "back", (settings.access_ring,), {1}, {1})
    assert column(engine, "SELECT process FROM tokenfleet.key_holders") == ["back"]
