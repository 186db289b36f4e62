"""Success answers in the shape that a definition describes: the reading of answers, inverted.

Each field is put where the definition looks for it, in its unit and format. :class:`Shape` says what is odd about an
answer; nothing is by default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Final

from conformance.chains import Issue
from conformance.documents import Document, instance_of, values_at, with_value, written
from conformance.meanings import ANYTHING
from providers.spec import ProviderSpec
from providers.spec_answers import AnswerFields, Condition, Duration, Moment

_UNIT_SECONDS: Final[Mapping[str, float]] = {
    "seconds": 1,
    "milliseconds": 0.001,
    "minutes": 60,
    "hours": 3600,
    "days": 86_400,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """How an answer differs from the plain one."""

    alternate: int = 0
    """Which of several paths each field stands at, counted round."""
    told_by: str = "both"
    """Whether the expiry is told as a lifetime (``in``), a moment (``at``), both or not at all (``nothing``)."""
    expiry: object = None
    """What stands where the lifetime, or the moment, is expected, in place of the truth."""
    as_text: bool = False
    """Whether numbers are written as text."""
    access_token: bool = True
    refresh_token: bool = True
    stretch: int = 1
    """How many times too long the lifetime, or the time until the moment, is told."""
    breaks_success: Condition | None = None
    """A condition of success that the answer does not fulfil."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Captured variables that the answer states."""


PLAIN: Final = Shape()


def success(
    spec: ProviderSpec,
    fields: AnswerFields,
    issue: Issue,
    shape: Shape,
    *,
    now: float,
    refresh_expires_at: float | None = None,
    scope: str | None = None,
) -> Document:
    """Return the document of a good answer."""
    document: Document = {}

    def put(paths: tuple[str, ...], value: object) -> None:
        nonlocal document
        if value is not None and paths:
            document = with_value(document, paths[shape.alternate % len(paths)], value)

    if shape.access_token:
        put(fields.access_token, issue.access_token.reveal())
    if shape.refresh_token and issue.refresh_token is not None:
        put(fields.refresh_token, issue.refresh_token.reveal())
    put(fields.token_type, "Bearer")
    put(fields.scope, scope)
    life = issue.life_seconds * shape.stretch
    never = spec.lifetimes.access_never_expires and not fields.expires_in.zero_is_never
    if shape.expiry is not None:
        put(fields.expires_in.path, shape.expiry)
        if fields.expires_at is not None:
            put(fields.expires_at.path, shape.expiry)
    elif not never and shape.access_token:
        if shape.told_by in ("in", "both") or (shape.told_by == "at" and fields.expires_at is None):
            put(fields.expires_in.path, _lifetime(fields.expires_in, life, shape, spec))
        if shape.told_by in ("at", "both") and fields.expires_at is not None:
            put(fields.expires_at.path, _moment(fields.expires_at, now + life, shape))
    if refresh_expires_at is not None and issue.refresh_token is not None:
        left = math.floor(refresh_expires_at - now)
        if "refresh_token_expires_in" in fields.model_fields_set:
            put(fields.refresh_token_expires_in.path, _written(fields.refresh_token_expires_in, left, shape))
        if fields.refresh_token_expires_at is not None:
            put(
                fields.refresh_token_expires_at.path,
                _moment(fields.refresh_token_expires_at, refresh_expires_at, shape),
            )
    for name, value in shape.variables.items():
        put(tuple(spec.variables[name].from_answer), value)
    for condition in fields.success:
        document = fulfilled(document, condition)
    if shape.breaks_success is not None:
        document = broken(document, shape.breaks_success)
    return document


def stated_life(fields: AnswerFields, life_seconds: int) -> int:
    """Return ``life_seconds`` as the answer's unit can state it."""
    if fields.expires_in.format != "number":
        return life_seconds - life_seconds % 60 if life_seconds >= 60 else 60
    unit = _UNIT_SECONDS[fields.expires_in.unit]
    return round(max(1, round(life_seconds / unit)) * unit)


def last_fields(spec: ProviderSpec) -> AnswerFields:
    """Return where the answer has what that brings the token for readers."""
    return spec.steps[-1].answer if spec.steps else spec.answer


def alternates(spec: ProviderSpec) -> int:
    """Return how many shapes it takes to use every path at least once."""
    answers = [spec.answer, *(step.answer for step in spec.steps)]
    return max(_alternates(fields, spec) for fields in answers)


def _alternates(fields: AnswerFields, spec: ProviderSpec) -> int:
    every = [
        fields.access_token,
        fields.refresh_token,
        fields.token_type,
        fields.scope,
        fields.expires_in.path,
        fields.expires_at.path if fields.expires_at else (),
        fields.refresh_token_expires_in.path,
        *(variable.from_answer for variable in spec.variables.values()),
    ]
    return max(map(len, every))


def broken(document: Document, condition: Condition) -> Document:
    """Return ``document`` with what ``condition`` forbids, or as if nothing was said where it demands something."""
    path = condition.path[0]
    if condition.absent:
        return with_value(document, path, "conformance_error")
    texts = {written(each) for each in condition.value}
    for value in (False, -987, "conformance_error"):
        current = next(iter(values_at(document, path)), None)
        same_kind = current is None or (isinstance(value, type(current)) and isinstance(current, type(value)))
        if written(value) not in texts and same_kind:
            return with_value(document, path, value)
    return with_value(document, path, "conformance_error")


def fulfilled(document: Document, condition: Condition) -> Document:
    """Return ``document`` with what ``condition`` demands."""
    if condition.absent or any(True for path in condition.path for _ in values_at(document, path)):
        return document
    if condition.value:
        return with_value(document, condition.path[0], condition.value[0])
    return with_value(document, condition.path[0], instance_of((*condition.pattern, ANYTHING)[0]))


def _lifetime(lifetime: Duration, seconds: int, shape: Shape, spec: ProviderSpec) -> object:
    if spec.lifetimes.access_never_expires and lifetime.zero_is_never:
        return 0
    return _written(lifetime, seconds, shape)


def _written(lifetime: Duration, seconds: int, shape: Shape) -> object:
    if lifetime.format == "days_hours_minutes":
        minutes = seconds // 60
        return f"{minutes // 1440}:{minutes // 60 % 24}:{minutes % 60}"
    if lifetime.format == "hours_minutes_seconds":
        return f"{seconds // 3600}:{seconds // 60 % 60}:{seconds % 60}"
    number = round(seconds / _UNIT_SECONDS[lifetime.unit])
    return str(number) if shape.as_text else number


def _moment(moment: Moment, seconds: float, shape: Shape) -> object:
    at = datetime.fromtimestamp(math.floor(seconds), UTC)
    if moment.format == "iso8601":
        return at.isoformat().replace("+00:00", "Z") if shape.alternate % 2 == 0 else at.isoformat()
    if moment.format == "http_date":
        return format_datetime(at, usegmt=True)
    number = math.floor(seconds) * (1000 if moment.format == "epoch_milliseconds" else 1)
    return str(number) if shape.as_text else number
