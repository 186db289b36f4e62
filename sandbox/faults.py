"""Misbehaviour on request: which fault, if any, a token request meets.

Promise: chance is a function of the seed, the rule, the subject and how often that subject has asked, and of
nothing else. Two runs with the same seed hit the same requests of each subject, however the requests of
different subjects interleave; a ``count`` is used up in order of arrival.

A fault strikes at a stage (``sandbox.selection``). Where it says that the server acts and its answer does not
arrive, the ledger counts a lost rotation; where it strikes first, the token is untouched.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sandbox.selection import Selection, Stage
from tokenfleet.errors import UserError


class FaultKind(StrEnum):
    """What can go wrong at a token endpoint."""

    STATUS_500 = "status_500"
    STATUS_503_RETRY_AFTER = "status_503_retry_after"
    STATUS_429_RETRY_AFTER = "status_429_retry_after"
    INVALID_GRANT = "invalid_grant"
    """Says so, and leaves the token good: a false alarm."""
    INVALID_CLIENT = "invalid_client"
    HTML_403 = "html_403"
    """A firewall in front of the server."""
    ERROR_IN_200 = "error_in_200"
    RESET_BEFORE = "reset_before"
    """Connection reset, request not acted on."""
    RESET_AFTER = "reset_after"
    """Rotated, then the connection is reset."""
    HALF_ANSWER = "half_answer"
    """Rotated; the body breaks off in the middle."""
    SLOW = "slow"
    """A good answer after ``seconds``."""
    HANG = "hang"
    """No answer for ``seconds``, then a reset; until the client gives up when ``seconds`` is left out."""
    GARBAGE_JSON = "garbage_json"
    MISSING_REFRESH_TOKEN = "missing_refresh_token"
    """A good answer without one: the token presented stays good (RFC 6749 section 6)."""
    MISSING_EXPIRES_IN = "missing_expires_in"


_STAGE_BY_DEFAULT: Final = {
    FaultKind.STATUS_500: Stage.BEFORE_DECIDING,
    FaultKind.STATUS_503_RETRY_AFTER: Stage.BEFORE_DECIDING,
    FaultKind.STATUS_429_RETRY_AFTER: Stage.BEFORE_DECIDING,
    FaultKind.INVALID_GRANT: Stage.BEFORE_DECIDING,
    FaultKind.INVALID_CLIENT: Stage.BEFORE_DECIDING,
    FaultKind.HTML_403: Stage.BEFORE_DECIDING,
    FaultKind.ERROR_IN_200: Stage.BEFORE_DECIDING,
    FaultKind.GARBAGE_JSON: Stage.BEFORE_DECIDING,
    FaultKind.SLOW: Stage.AFTER_DECIDING,
    FaultKind.HANG: Stage.AFTER_DECIDING,
}
_STAGE_BY_NATURE: Final = {
    FaultKind.RESET_BEFORE: Stage.BEFORE_DECIDING,
    FaultKind.RESET_AFTER: Stage.AFTER_DECIDING,
    FaultKind.HALF_ANSWER: Stage.AFTER_DECIDING,
    FaultKind.MISSING_REFRESH_TOKEN: Stage.AFTER_DECIDING,
    FaultKind.MISSING_EXPIRES_IN: Stage.AFTER_DECIDING,
}


_ONLY_TOKENS: Final = frozenset(
    {
        FaultKind.HALF_ANSWER,
        FaultKind.INVALID_GRANT,
        FaultKind.INVALID_CLIENT,
        FaultKind.MISSING_REFRESH_TOKEN,
        FaultKind.MISSING_EXPIRES_IN,
    }
)
"""Faults that an API cannot have."""


class FaultRule(BaseModel):
    """One kind of fault, whom it hits, and how often. Left alone it hits every token request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FaultKind
    probability: Annotated[float, Field(ge=0, le=1)] = 1.0
    count: Annotated[int | None, Field(ge=1)] = None
    """Strikes so many times at most."""
    subjects: frozenset[str] = frozenset()
    prefix: str = ""
    endpoint: Literal["token", "userinfo"] = "token"
    """What it strikes: token requests, or those of an API with an access token."""
    duration_seconds: Annotated[float | None, Field(gt=0)] = None
    """Ends so long after it was set."""
    stage: Stage | None = None
    """When it strikes; None is the kind's usual moment."""
    seconds: Annotated[float | None, Field(gt=0)] = None
    """How long ``slow`` and ``hang`` take."""
    retry_after_seconds: Annotated[int, Field(ge=0)] = 1
    retry_after_format: Literal["seconds", "http-date"] = "seconds"
    error: str = "server_error"
    """What ``error_in_200`` says."""

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.stage is Stage.API_REQUEST:
            raise ValueError("stage is about token requests: say endpoint 'userinfo' instead")
        if self.endpoint == "userinfo" and (self.stage is not None or self.kind in _ONLY_TOKENS):
            raise ValueError(
                f"{self.kind} is about token requests" if self.stage is None else "leave 'stage' out"
            )
        by_nature = _STAGE_BY_NATURE.get(self.kind)
        if by_nature is not None and self.stage not in (None, by_nature):
            raise ValueError(f"{self.kind} always strikes {by_nature}: leave 'stage' out")
        if self.kind is FaultKind.SLOW and self.seconds is None:
            raise ValueError("slow needs 'seconds': how long the answer takes")
        return self

    @property
    def strikes(self) -> Stage:
        """The moment at which it strikes."""
        return self.stage or _STAGE_BY_NATURE.get(self.kind) or _STAGE_BY_DEFAULT[self.kind]


class _Rules(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rules: Annotated[list[FaultRule], Field(min_length=1, max_length=1000)]


def parse_rules(body: bytes) -> tuple[FaultRule, ...]:
    """Read ``{"rules": [...]}``. Raises :class:`UserError` that names each mistake and its place."""
    try:
        return tuple(_Rules.model_validate_json(body).rules)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Return one line that names the place and the reason of each mistake, without the input."""
    mistakes = (
        f"{'.'.join(str(part) for part in mistake['loc']) or 'body'}: {mistake['msg']}"
        for mistake in error.errors(include_url=False, include_input=False, include_context=False)
    )
    return "; ".join(mistakes)


@dataclass(slots=True)
class _Armed:
    rule: FaultRule
    selection: Selection
    salt: bytes
    ends_at: float | None
    strikes_left: int | None


@dataclass(slots=True)
class FaultPlan:
    """The rules in force. The first that applies to a request, in the order they were set, strikes."""

    seed: int
    struck: dict[FaultKind, int] = field(default_factory=dict)
    """How many requests each kind has hit since the start."""
    _armed: list[_Armed] = field(default_factory=list)
    _rules_set: int = 0

    def add(self, rules: tuple[FaultRule, ...], now: float) -> None:
        """Put ``rules`` in force, behind those that are."""
        for rule in rules:
            ends_at = None if rule.duration_seconds is None else now + rule.duration_seconds
            selection = Selection(rule.subjects, rule.prefix)
            salt = f"{self.seed}/{self._rules_set}/".encode()
            self._armed.append(_Armed(rule, selection, salt, ends_at, rule.count))
            self._rules_set += 1

    def clear(self) -> None:
        """End all rules. What has struck stays counted."""
        self._armed.clear()

    def in_force(self, now: float) -> tuple[FaultRule, ...]:
        """Return the rules that may still strike, ``count`` being what is left of it."""
        self._drop_ended(now)
        return tuple(armed.rule.model_copy(update={"count": armed.strikes_left}) for armed in self._armed)

    def choose(self, subject: str, ordinal: int, now: float, *, endpoint: str = "token") -> FaultRule | None:
        """Return the rule that hits the ``ordinal``-th request of ``subject`` there, and count it as struck."""
        if not self._armed:
            return None
        self._drop_ended(now)
        for armed in self._armed:
            rule = armed.rule
            if rule.endpoint != endpoint or not armed.selection.includes(subject):
                continue
            if rule.probability < 1 and _chance(armed.salt, subject, ordinal) >= rule.probability:
                continue
            if armed.strikes_left is not None:
                armed.strikes_left -= 1
            self.struck[rule.kind] = self.struck.get(rule.kind, 0) + 1
            return rule
        return None

    def _drop_ended(self, now: float) -> None:
        self._armed = [
            armed
            for armed in self._armed
            if armed.strikes_left != 0 and (armed.ends_at is None or now < armed.ends_at)
        ]


def _chance(salt: bytes, subject: str, ordinal: int) -> float:
    digest = hashlib.blake2b(salt + f"{subject}/{ordinal}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)
