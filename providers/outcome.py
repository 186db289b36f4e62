"""What an answer means: one total, pure function over every answer and every failure (DESIGN section 5).

Order: a success is a success; then the definition's error rules as written; then the error codes of RFC 6749
section 5.2; then the status. Only the first two rows of that order can say that a grant is gone, and only a
body that can be read can say it (G4). An answer that may have come with a new refresh token, but cannot be
read, is :class:`OutcomeUnknown`: the caller must not assume that the old one is unspent. And a refresh token that
came is never thrown away for what came beside it: what else is odd about an answer costs the oddity, not the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from providers.documents import Document, parse
from providers.exchange import Answer, Exchange, Failure, FailureKind
from providers.rules import DEFAULT_STATUSES, CompiledRule
from providers.shapes import error_word, shape_of
from providers.spec import ProviderSpec
from providers.spec_answers import AnswerFields, RefreshOutcome
from providers.token_fields import TokenFields
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    RequestRejected,
    Throttled,
    TokenAnswer,
    Unavailable,
    Undescribed,
)

RFC6749_ERRORS: Final[Mapping[str, RefreshOutcome]] = {
    "invalid_grant": "grant_rejected",
    "invalid_client": "client_rejected",
    "unauthorized_client": "client_rejected",
    "invalid_request": "request_rejected",
    "unsupported_grant_type": "request_rejected",
    "invalid_scope": "request_rejected",
    # Section 4.1.2.1 has these for the other endpoint; servers use them at this one too.
    "server_error": "unavailable",
    "temporarily_unavailable": "unavailable",
}
"""Error codes of section 5.2 and what they mean, after the definition's own rules."""

RETRY_STATUSES: Final = frozenset({408, 425})
"""4xx statuses that by their own definition invite a repetition (RFC 9110 section 15.5.9, RFC 8470)."""

NO_OUTAGE: Final = frozenset({"claim_expired", "unusable_request"})
"""Why nothing was sent that is our doing: it says nothing of the provider."""

BROKEN_OFF: Final = frozenset({"timeout", "answer_cut"})
"""Flaws of an answer that ended before its time, as a lost connection does: the provider's outage. One that came
whole and cannot be read (too large, an encoding that nobody knows) is not."""

_SECONDS = re.compile(r"[0-9]{1,9}")


class AnswerReader:
    """Reads the answers of one definition. Immutable; safe in any thread."""

    __slots__ = ("_fields", "_rules")

    def __init__(self, spec: ProviderSpec, fields: AnswerFields | None = None, *, allow_http: bool) -> None:
        """Compile ``spec``, which has passed ``providers.contradictions``.

        ``fields`` says where answers have what, if not as those of the token endpoint do: a step's.
        """
        presents_refresh_tokens = spec.refresh.grant == "refresh_token"
        self._fields = TokenFields(
            spec, fields, allow_http=allow_http, takes_refresh_tokens=presents_refresh_tokens
        )
        self._rules = tuple(map(CompiledRule, spec.errors))

    def read(self, exchange: Exchange, *, now: datetime) -> Outcome:
        """Return the outcome of ``exchange``, which was received at ``now``. Never raises."""
        if isinstance(exchange, Failure):
            if exchange.kind is FailureKind.NOT_SENT:
                return Unavailable(exchange.code, outage=exchange.code not in NO_OUTAGE)
            return OutcomeUnknown(exchange.code, outage=True)
        document, is_whole = (None, False) if exchange.flaw else parse(exchange)
        if isinstance(document, dict) and 200 <= exchange.status < 300:
            tokens = self._fields.read(document, now)
            if tokens is not None and (
                tokens.access_token is not None
                or self._is_success(tokens, exchange.status, document, is_whole)
            ):
                return Refreshed(tokens)
            if is_whole and self._fields.brings_both(document):
                # Then no error in it is a definite word.
                return self._undescribed(exchange.status, document)
        return self._error(exchange, document if is_whole else None, now)

    def _is_success(self, tokens: TokenAnswer, status: int, document: dict[str, Any], is_whole: bool) -> bool:
        """Answer whether an answer that renews our access token and brings none is to be believed.

        With nothing in it that only a success has, it must be whole, and no rule may know it for an error.
        """
        if not is_whole and tokens.refresh_token is None:
            return False
        return all(rule.code_for(status, document) is None for rule in self._rules)

    def _undescribed(self, status: int, document: Document, code: str | None = None) -> Undescribed:
        word, shape = code or error_word(document) or _status_code(status), shape_of(status, document)
        successor = None
        if isinstance(document, dict) and 200 <= status < 300:
            successor = self._fields.refresh_token(document)
        return Undescribed(word, shape, successor)

    def _error(self, answer: Answer, document: Document | None, now: datetime) -> Outcome:
        status = answer.status
        for rule in self._rules:
            code = rule.code_for(status, document)
            if code is not None and document is not None and rule.outcome == "undescribed":
                # By a rule or by the lack of one: what came beside it is kept.
                return self._undescribed(status, document, code)
            if code is not None:
                return _outcome(rule.outcome, code, answer, document, now, whole_app=rule.whole_app)
        if status in DEFAULT_STATUSES and isinstance(document, dict):
            error = document.get("error")
            known = RFC6749_ERRORS.get(error) if isinstance(error, str) else None
            if known is not None:
                return _outcome(known, str(error), answer, document, now)
        code = _status_code(status)
        if status == 429:
            return Throttled(code, _retry_after(answer, now))
        if status == 503 and (retry_after := _retry_after(answer, now)) is not None:
            return Throttled(code, retry_after)
        if status not in DEFAULT_STATUSES or status in RETRY_STATUSES:
            return Unavailable(code, outage=_is_outage(answer))
        if document is not None:
            return self._undescribed(status, document)
        if status >= 400:
            return Unavailable(code, outage=_is_outage(answer))
        flaw = answer.flaw or ("unreadable_answer" if answer.body else "empty_answer")
        return OutcomeUnknown(flaw, outage=_is_outage(answer))


def _is_outage(answer: Answer) -> bool:
    """Answer whether ``answer`` speaks of a provider that is down, whomever it answers: what the circuit counts."""
    return 500 <= answer.status <= 599 or answer.flaw in BROKEN_OFF


def _status_code(status: int) -> str:
    return f"http_{status}" if 100 <= status <= 999 else "http_invalid"


def _outcome(
    kind: RefreshOutcome,
    code: str,
    answer: Answer,
    document: object,
    now: datetime,
    *,
    whole_app: bool = True,
) -> Outcome:
    """Return the outcome of ``kind``. ``whole_app`` is False where it concerns this connection alone."""
    match kind:
        case "grant_rejected":
            return GrantRejected(code)
        case "client_rejected":
            return ClientRejected(code, whole_app)
        case "request_rejected":
            return RequestRejected(code)
        case "throttled":
            return Throttled(code, _retry_after(answer, now), whole_app)
        case "unavailable":
            # A tenant's own host can be down while its provider is not.
            return Unavailable(code, outage=whole_app and _is_outage(answer))
        case "undescribed":
            return Undescribed(code, shape_of(answer.status, document))


def _retry_after(answer: Answer, now: datetime) -> timedelta | None:
    """Return how long Retry-After asks us to wait: seconds or a date (RFC 9110 section 10.2.3)."""
    value = answer.headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return timedelta(seconds=int(value))
    try:
        moment = parsedate_to_datetime(value)
        return max(moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC), now) - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
