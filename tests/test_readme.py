"""The README keeps its word: its Python block reads a token, its commands and links exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, text

from store.keys import Vault
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import access_token_binding

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def python_block() -> str:
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return str(block)


def test_the_python_block_reads_a_token_with_the_access_ring_alone(
    engine: Engine, vault: Vault, settings: Settings, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine.begin() as connection:
        app_id = connection.execute(
            text(
                "INSERT INTO tokenfleet.oauth_apps (provider, environment, name, client_id) "
                "VALUES ('google', 'production', 'default', 'client') RETURNING id"
            )
        ).scalar_one()
        account_id = connection.execute(
            text(
                "INSERT INTO tokenfleet.accounts (provider, environment, external_id, app_id, status) "
                "VALUES ('google', 'production', 'customer-17', :app_id, 'active') RETURNING id"
            ),
            {"app_id": app_id},
        ).scalar_one()
        sealed = vault.access.seal("what the reader gets", access_token_binding(account_id, 3))
        connection.execute(
            text(
                "INSERT INTO tokenfleet.token_sets (account_id, generation, epoch, access_token, obtained_at) "
                "VALUES (:id, 3, 0, :sealed, now())"
            ),
            {"id": account_id, "sealed": sealed},
        )
    keys = json.loads(Path(environ["TOKENFLEET_HOME"], "keys.json").read_text())
    monkeypatch.setenv("TOKENFLEET_ACCESS_KEYS", keys["access"][0])
    monkeypatch.setenv("DATABASE_URL", settings.database_url.replace("+psycopg", ""))
    found: dict[str, object] = {}
    exec(compile(python_block(), "README.md", "exec"), found)
    assert found["headers"] == {"Authorization": "Bearer what the reader gets"}


def test_the_sql_block_runs_as_it_stands(engine: Engine, settings: Settings) -> None:
    [statement] = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    with psycopg.connect(settings.database_url.replace("+psycopg", "")) as connection:
        assert connection.execute(statement).fetchall() == []


def test_every_link_in_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_setting_in_the_operations_page_exists_and_none_is_missing() -> None:
    from tokenfleet.settings import PREFIX, Tunables

    page = (ROOT / "docs" / "operations.md").read_text()
    rows = set(re.findall(r"`(TOKENFLEET_[A-Z_]+)`", page))
    for name in Tunables.model_fields:
        assert PREFIX + name.upper() in rows
    source = "".join((ROOT / "tokenfleet" / name).read_text() for name in ("settings.py", "key_rings.py"))
    tunables = {PREFIX + name.upper() for name in Tunables.model_fields}
    for name in rows - tunables:
        assert name in source or name in {"TOKENFLEET_ACCESS_KEYS", "TOKENFLEET_REFRESH_KEYS"}, name
