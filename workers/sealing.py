"""An account's tokens in the clear, while one attempt lasts: opened for what is presented, sealed for what follows.

Invariants kept here:

* What is opened is what the definition's grant presents, and nothing that nobody needs: the refresh token, or a subject
  token in its place; the access token, where that is exchanged or a template of the request has it; else nothing.
* A refresh token that is there is never dropped: it stands in the next generation, new or as it was. What is absent
  stays absent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from providers import Provider
from store.answers import Part, SavedTokens
from store.keys import Vault
from store.schedule import Attempt
from tokenfleet.outcome import TokenAnswer
from tokenfleet.policy import Save
from tokenfleet.presented import Presented
from tokenfleet.tokens import merge
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose
from workers.settling import Asking

MISSING: Final[Mapping[Presented, str]] = {
    Presented.REFRESH_TOKEN: "refresh_token_missing",
    Presented.SUBJECT_TOKEN: "refresh_token_missing",
    Presented.ACCESS_TOKEN: "access_token_missing",
}
UNREADABLE: Final = "envelope_unreadable"
"""The ciphertext was altered or moved, or its key is not here: repetition cannot help."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one account has. ``presented`` is what a rejection is about, None when nothing of it is presented."""

    presented: Secret | None
    refresh_token: Secret | None
    access_token: Secret | None


class Sealer:
    """Opens and seals the tokens of attempts. One per worker process."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def open(self, provider: Provider, attempt: Attempt) -> Held | str:
        """Return what a renewal of ``attempt`` needs, or a machine word for why it cannot be had."""
        refresh_token = access_token = presented = None
        unreadable = False
        try:
            refresh_token = self._refresh_token(attempt)
        except EnvelopeError:
            unreadable = provider.presents in (Presented.REFRESH_TOKEN, Presented.SUBJECT_TOKEN)
        if provider.needs_access_token:
            try:
                access_token = self._access_token(attempt)
            except EnvelopeError:
                unreadable |= provider.presents is Presented.ACCESS_TOKEN
        if unreadable:
            return UNREADABLE
        if provider.presents is Presented.ACCESS_TOKEN:
            presented = access_token
        elif provider.presents is not Presented.NOTHING:
            presented = refresh_token
        if presented is None and provider.presents in MISSING:
            return MISSING[provider.presents]
        return Held(presented, refresh_token, access_token)

    def kept_access_token(self, attempt: Attempt) -> Secret | None:
        """Return the access token that readers have, for an answer that lets it live on; None when there is none."""
        with contextlib.suppress(EnvelopeError):
            return self._access_token(attempt)
        return None

    def seal(
        self,
        asking: Asking,
        attempt: Attempt,
        answer: TokenAnswer,
        decision: Save,
        refresh_token: Secret | None,
        *,
        now: datetime,
        duration_ms: int,
        part: Part = Part.WHOLE,
    ) -> SavedTokens:
        """Return ``answer``, which came ``now``, as it is saved over the generation of ``attempt``.

        ``refresh_token`` is what the account had.
        """
        kept = self.kept_access_token(attempt) if answer.access_token is None else None
        tokens = merge(
            answer,
            refresh_token=refresh_token,
            refresh_token_expires_at=attempt.refresh_token_expires_at,
            scope=attempt.scope,
            access_token=kept,
        )
        account_id, generation = attempt.account_id, attempt.generation + 1
        access_token = tokens.access_token or Secret("")
        return SavedTokens(
            account_id=account_id,
            epoch=attempt.epoch,
            generation=attempt.generation,
            access_token=self._vault.access.seal(
                access_token.reveal(), access_token_binding(account_id, generation)
            ),
            refresh_token=None
            if tokens.refresh_token is None
            else self._vault.refresh.seal(
                tokens.refresh_token.reveal(), refresh_token_binding(account_id, generation)
            ),
            token_type=tokens.token_type,
            scope=tokens.scope,
            expires_at=decision.expires_at,
            obtained_at=now,
            refresh_token_expires_at=tokens.refresh_token_expires_at,
            variables=tokens.variables,
            next_refresh_at=decision.next_refresh_at,
            job_id=asking.job_id,
            duration_ms=duration_ms,
            activates=part is not Part.FIRST
            and attempt.status is not AccountStatus.ACTIVE
            and bool(access_token),
            probing=decision.probing,
            grant_ends_at=decision.grant_ends_at,
            learned_lifetime=decision.learned_lifetime,
            part=part,
        )

    def _refresh_token(self, attempt: Attempt) -> Secret | None:
        if attempt.refresh_token is None:
            return None
        binding = refresh_token_binding(attempt.account_id, attempt.generation)
        return Secret(self._vault.refresh.open(attempt.refresh_token, binding, Purpose.REFRESH)) or None

    def _access_token(self, attempt: Attempt) -> Secret | None:
        if attempt.access_token is None:
            return None
        binding = access_token_binding(attempt.account_id, attempt.generation)
        return Secret(self._vault.access.open(attempt.access_token, binding, Purpose.REFRESH)) or None
