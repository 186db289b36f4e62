"""What a line has to bring, and of how many accounts it is: both depend on its provider.

An account lives by what its renewals present: a refresh token, a subject token, its access token, or nothing but the
client that it belongs to. A line that brings the answer of the token endpoint brings all of that in it, and may be
about several accounts. Pure; no reason repeats a value of the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from store.apps import DEFAULT_ENVIRONMENT
from store.import_line import EXTERNAL_ID_CHARACTERS, TOKEN_TYPE_CHARACTERS, ImportLine, LineRejected, spelled
from store.import_rules import ProviderRules, RulesOf
from tokenfleet.connected import ConnectedAccount
from tokenfleet.errors import UserError
from tokenfleet.presented import Presented
from tokenfleet_client.secret import Secret

UNKNOWN_PROVIDER: Final = "names an unknown provider: 'tokenfleet providers list' shows the known ones"
NO_REFRESH_TOKEN: Final = "refresh_token is missing"
NO_SUBJECT_TOKEN: Final = (
    "refresh_token is missing: here it is the subject token, which every renewal presents"
)
NO_PRESENTED_TOKEN: Final = "access_token is missing: this provider renews it by presenting it"
NO_LASTING_TOKEN: Final = (
    "access_token is missing: this provider never renews one, so it is all that an account has"
)
NEVER_PRESENTED: Final = (
    "has a refresh_token, which this provider is never presented with: leave it out, or name the provider that "
    "renews by it"
)


class NumberedLine(msgspec.Struct, frozen=True, gc=False):
    """What a line says of one account, and where it stands. ``environment`` has its default filled in.

    ``credential`` is what the account lives by, None when its client alone is enough. ``captured`` are variables that
    answers of the provider told, the one in the line or earlier ones. ``received_at`` is when the tokens came, if that
    is known to be earlier than now.
    """

    number: int
    environment: str
    line: ImportLine
    credential: Secret | None = None
    captured: Mapping[str, str] | None = None
    received_at: datetime | None = None


class Admission:
    """Admits the lines of one import. ``now`` is the database's clock."""

    def __init__(self, rules_of: RulesOf, *, now: datetime) -> None:
        self._rules_of = rules_of
        self._now = now

    def admit(self, number: int, line: ImportLine) -> Sequence[NumberedLine]:
        """Return what ``line`` says, by account. Raises :class:`~store.import_line.LineRejected`."""
        try:
            rules = self._rules_of(line.provider)
        except UserError as error:
            raise LineRejected(str(error) if spelled(line.provider) else UNKNOWN_PROVIDER) from None
        environment = line.environment or DEFAULT_ENVIRONMENT
        if line.answer is not None:
            return self._answered(number, environment, line, rules)
        received_at = None if line.received_at is None else min(line.received_at, self._now)
        credential, captured = _credential(line, rules), line.answer_variables or None
        return (NumberedLine(number, environment, line, credential, captured, received_at),)

    def _answered(
        self, number: int, environment: str, line: ImportLine, rules: ProviderRules
    ) -> Sequence[NumberedLine]:
        assert line.answer is not None
        received_at = min(line.received_at or self._now, self._now)
        try:
            accounts = rules.connect(line.answer.reveal(), received_at)
        except UserError as error:
            raise LineRejected(str(error)) from None
        admitted = []
        for account in accounts:
            own = _own_line(line, account)
            admitted.append(
                NumberedLine(
                    number,
                    environment,
                    own,
                    _credential(own, rules),
                    account.tokens.variables or None,
                    received_at if line.received_at else None,
                )
            )
        return admitted


def _credential(line: ImportLine, rules: ProviderRules) -> Secret | None:
    """Return what the account of ``line`` lives by."""
    match rules.credential:
        case "refresh_token":
            if not line.refresh_token:
                is_subject = rules.presents is Presented.SUBJECT_TOKEN
                raise LineRejected(NO_SUBJECT_TOKEN if is_subject else NO_REFRESH_TOKEN)
            return line.refresh_token
        case "access_token":
            if line.refresh_token:
                raise LineRejected(NEVER_PRESENTED)
            if not line.access_token:
                raise LineRejected(NO_PRESENTED_TOKEN if rules.lifetimes.renews else NO_LASTING_TOKEN)
            return line.access_token
        case None:
            if line.refresh_token:
                raise LineRejected(NEVER_PRESENTED)
            return None


def _own_line(line: ImportLine, account: ConnectedAccount) -> ImportLine:
    """Return what ``line`` would say if it were about ``account`` alone, without an answer."""
    external_id = line.external_id if account.part is None else f"{line.external_id}/{account.part}"
    if len(external_id) > EXTERNAL_ID_CHARACTERS or "\0" in external_id:
        raise LineRejected(
            f"answer makes an external id of more than {EXTERNAL_ID_CHARACTERS} characters, or of none that "
            "Postgres can store"
        )
    tokens = account.tokens
    return msgspec.structs.replace(
        line,
        external_id=external_id,
        refresh_token=tokens.refresh_token,
        access_token=tokens.access_token,
        token_type=_storable(tokens.token_type, TOKEN_TYPE_CHARACTERS),
        scope=_storable(tokens.scope),
        expires_at=tokens.expires_at,
        refresh_token_expires_at=tokens.refresh_token_expires_at,
        answer=None,
        received_at=None,
    )


def _storable(text: str | None, characters: int | None = None) -> str | None:
    """Return ``text`` if its column takes it. What is not, is not worth an account."""
    if text is None or "\0" in text or (characters is not None and len(text) > characters):
        return None
    return text
