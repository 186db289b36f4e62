"""What active accounts hold in the database: their tokens, opened, as fingerprints to compare with the provider's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Engine, text

from sandbox.authority import LiveTokens
from sandbox.tokens import fingerprint
from store.keys import Vault
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose

_TOKENS = text("""
    SELECT a.id, a.external_id, t.generation, t.access_token, t.refresh_token,
           EXTRACT(epoch FROM t.expires_at)::float AS expires_at
    FROM tokenfleet.accounts a JOIN tokenfleet.token_sets t ON t.account_id = a.id
    WHERE a.status = 'active' AND starts_with(a.external_id, :prefix)
""")


@dataclass(frozen=True, slots=True)
class Holding:
    """One account's tokens, as SHA-256 fingerprints in hexadecimal; ``expires_at`` in POSIX seconds."""

    subject: str
    refresh_token_sha256: str
    access_token_sha256: str
    expires_at: float | None

    def has_tokens_of(self, live: LiveTokens) -> bool:
        """Answer whether these are the tokens that the provider gave last."""
        given = live.refresh_token_sha256, live.access_token_sha256
        return (self.refresh_token_sha256, self.access_token_sha256) == given


def holdings(engine: Engine, vault: Vault, prefix: str = "") -> Iterator[Holding]:
    """Yield what every active account holds whose subject begins with ``prefix``."""
    with engine.connect() as connection:
        for row in connection.execute(_TOKENS, {"prefix": prefix}):
            refresh = vault.refresh.open(
                row.refresh_token, refresh_token_binding(row.id, row.generation), Purpose.VERIFY
            )
            access = vault.access.open(
                row.access_token, access_token_binding(row.id, row.generation), Purpose.VERIFY
            )
            yield Holding(
                row.external_id, fingerprint(Secret(refresh)), fingerprint(Secret(access)), row.expires_at
            )
