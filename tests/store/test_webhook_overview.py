"""How webhooks are doing, in numbers: right, and cheap however much has been delivered and however much waits."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine, text

from store import endpoints, webhook_overview
from store.engine import database_now
from store.keys import Vault
from store.webhook_overview import WebhooksOverview, read_webhooks
from tokenfleet.delivery_policy import DISABLED_AFTER, DisabledReason
from tokenfleet.jobs import EndpointId

URL = "https://receiver.example/hook"


def _add(engine: Engine, vault: Vault) -> EndpointId:
    with engine.begin() as connection:
        return endpoints.add(connection, vault.refresh, url=URL)[0].endpoint_id


def _execute(engine: Engine, statement: str, **parameters: object) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement), parameters)


def _read(engine: Engine) -> WebhooksOverview:
    with engine.connect() as connection:
        return read_webhooks(connection)


def test_nobody_wants_webhooks_and_nothing_is_told(engine: Engine) -> None:
    assert _read(engine) == WebhooksOverview(0, 0, (), 0, False, None)


def test_who_fails_or_was_disabled_by_itself_is_in_trouble_and_nobody_else(
    engine: Engine, vault: Vault
) -> None:
    once, failing, gone, disabled, removed = (_add(engine, vault) for _ in range(5))
    state = (
        "UPDATE tokenfleet.webhook_endpoints SET failing_since = now(), failures = :failures WHERE id = :id"
    )
    _execute(engine, state, id=once, failures=4)
    _execute(engine, state, id=failing, failures=5)
    with engine.begin() as connection:
        endpoints.disable(connection, gone, DisabledReason.GONE)
        endpoints.disable(connection, disabled, DisabledReason.OPERATOR)
        endpoints.disable(connection, removed, DisabledReason.REMOVED)
        now = database_now(connection)

    found = _read(engine)

    assert (found.endpoints, found.disabled) == (4, 2)
    assert [each.endpoint_id for each in found.troubled] == [failing, gone]
    [tried] = found.failing
    assert tried.disabled_next is not None
    assert abs(tried.disabled_next - now - DISABLED_AFTER) < timedelta(minutes=1)


def test_a_million_deliveries_are_not_read(engine: Engine, vault: Vault) -> None:
    for _ in range(3):
        _add(engine, vault)
    _execute(
        engine,
        "INSERT INTO tokenfleet.outbox (account_id, event_type, payload, is_relayed) "
        "SELECT n, 'x:y', '{}', true FROM generate_series(1, 6000) n",
    )
    # Endpoint 1 has taken everything; much waits for endpoint 2, one due of each account; little for endpoint 3.
    _execute(
        engine,
        "INSERT INTO tokenfleet.webhook_deliveries "
        "(endpoint_id, event_id, subject, sequence, state, next_attempt_at, finished_at) "
        "SELECT e, o.id, 'account:' || o.account_id, o.sequence, "
        "       CASE WHEN e = 1 THEN 'delivered' ELSE 'pending' END, "
        "       CASE WHEN e > 1 THEN now() - interval '1 hour' END, CASE WHEN e = 1 THEN now() END "
        "FROM tokenfleet.outbox o, generate_series(1, 3) e WHERE e < 3 OR o.account_id <= 7",
    )
    _vacuum(engine)
    limit = {"counted": 500}
    with engine.connect() as connection:
        rows = {row.id: row for row in connection.execute(webhook_overview._ENDPOINTS, limit)}
        explain = text(f"EXPLAIN (ANALYZE, BUFFERS) {webhook_overview._ENDPOINTS.text}")
        plan = "\n".join(connection.execute(explain, limit).scalars())
        now = database_now(connection)

    assert [rows[each].waiting for each in (1, 2, 3)] == [0, 500, 7]
    assert now - rows[2].due_since >= timedelta(hours=1)
    assert "ix_webhook_deliveries_pending" in plan
    assert "ix_webhook_deliveries_due" in plan
    assert "Seq Scan on webhook_deliveries" not in plan
    touched = sum(int(part.partition(" ")[0]) for part in plan.split("shared hit=")[1:2])
    assert touched < 200, plan
    whole = _read(engine)
    assert (whole.waiting, whole.is_more) == (6007, False)


def _vacuum(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE) tokenfleet.webhook_deliveries"))
