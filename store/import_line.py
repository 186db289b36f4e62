"""One line of an import, checked: text in, an :class:`ImportLine` or one sentence that says what is wrong.

Pure. Promises: what is accepted here fits its columns, so that no line can spoil the company it is written
with; and no reason repeats a value, because in a file with its columns mixed up any value may be a token.

What a provider's lines have to bring besides is ``store.import_admission``'s to say.

``expires_at`` wins over ``expires_in``: the one is a moment, the other was counted from an answer that we did
not see. Null and, where text is expected, empty text mean "not given".

The fields from ``granted_at`` on are what an export says besides (``store.export``): all that a fleet has learned of
an account and that nobody else could know.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, final, get_type_hints

import msgspec
from msgspec import Meta

from tokenfleet_client.secret import PLACEHOLDER, Secret

TEN_YEARS: Final = timedelta(days=3653)
TOKEN_CHARACTERS: Final = 65_536
EXTERNAL_ID_CHARACTERS: Final = 512
TOKEN_TYPE_CHARACTERS: Final = 63
FINGERPRINT_BYTES: Final = 16
FINGERPRINTS_KEPT: Final = 16
"""Sign-ins of one account that are remembered: a file older than that is older than anybody's backup."""
CLOCK_TOLERANCE: Final = timedelta(minutes=5)
"""How far ahead of the database's clock another one may be that noted when an answer came."""

_LONGEST_SPELLED: Final = 20

_Name = Annotated[str, Meta(max_length=TOKEN_TYPE_CHARACTERS)]
_Text = Annotated[str, Meta(max_length=512)]
"""Indexed text. A B-tree entry of Postgres holds 2,704 bytes, and a character may take four."""
_Moment = Annotated[datetime, Meta(tz=True)]
_VariableName = Annotated[str, Meta(pattern="^[A-Za-z][A-Za-z0-9_]{0,63}$")]
_VariableValue = Annotated[str, Meta(max_length=4096)]
_Seconds = Annotated[float, Meta(ge=0, le=TEN_YEARS.total_seconds())]
_Fingerprint = Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * FINGERPRINT_BYTES}}}$")]


@final
class ConnectAnswer:
    """A token endpoint's answer that never prints itself: it is made of tokens."""

    __slots__ = ("_document",)

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document

    def reveal(self) -> dict[str, Any]:
        """Return the answer. Call it where it is read."""
        return self._document

    def __repr__(self) -> str:
        return PLACEHOLDER

    __str__ = __repr__


class ImportLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What a line says about one account, spelled as in the file.

    A msgspec struct and not a dataclass: decoding it takes 1.5 microseconds instead of 8, and the garbage
    collector, which would find no cycle in it, does not look at it.
    """

    provider: Annotated[str, Meta(min_length=1, max_length=63)]
    external_id: Annotated[str, Meta(min_length=1, max_length=EXTERNAL_ID_CHARACTERS)]
    refresh_token: Secret | None = None
    """What renewals present, unless that is the access token or nothing."""
    access_token: Secret | None = None
    token_type: _Name | None = None
    scope: Annotated[str, Meta(max_length=16_384)] | None = None
    expires_at: _Moment | None = None
    expires_in: _Seconds | None = None
    refresh_token_expires_at: _Moment | None = None
    tenant: _Text | None = None
    environment: _Name | None = None
    app: _Name | None = None
    variables: dict[_VariableName, _VariableValue] | None = None
    metadata: dict[str, Any] | None = None
    answer: ConnectAnswer | None = None
    """What the token endpoint answered at connect, in the place of all tokens and expiries."""
    received_at: _Moment | None = None
    """When that answer came, or the tokens."""
    granted_at: _Moment | None = None
    """When the customer consented."""
    learned_lifetime: _Seconds | None = None
    """How many seconds an access token of this account lived that did not say so."""
    answer_variables: dict[_VariableName, _VariableValue] | None = None
    """Variables that answers of the provider told."""
    client_id: _Text | None = None
    """The client that the tokens were issued to."""
    status: Literal["connecting", "active", "paused"] | None = None
    exported_at: _Moment | None = None
    """When the fleet that had the account stopped asking about it."""
    fingerprints: Annotated[list[_Fingerprint], Meta(max_length=FINGERPRINTS_KEPT)] | None = None
    """Of tokens that were imported there: what is spent stays known."""


FIELDS: Final = ImportLine.__struct_fields__
REQUIRED: Final = ("provider", "external_id")
OBJECTS: Final = frozenset({"variables", "metadata", "answer", "answer_variables", "fingerprints"})
SAID_BY_ANSWER: Final = (
    "refresh_token",
    "access_token",
    "token_type",
    "scope",
    "expires_at",
    "expires_in",
    "refresh_token_expires_at",
    "answer_variables",
)
_STORED_OBJECTS: Final = ("variables", "metadata", "answer_variables")

_TYPES: Final = get_type_hints(ImportLine, include_extras=True)
_TOKEN_FORM: Final = (
    f"must be up to {TOKEN_CHARACTERS:,} printable ASCII characters (RFC 6749 appendix A) without spaces or "
    "line breaks around them"
)
_MOMENT_FORM: Final = "must be a time in RFC 3339 with its offset, such as 2026-01-31T12:00:00Z"
_FORMS: Final[Mapping[str, str]] = {
    "provider": "must be the name of a provider, as text",
    "external_id": "must be text of 1 to 512 characters (a number goes in quotes)",
    "refresh_token": _TOKEN_FORM,
    "access_token": _TOKEN_FORM,
    "token_type": "must be text of at most 63 characters",
    "scope": "must be text of at most 16,384 characters, scopes separated by spaces",
    "expires_at": _MOMENT_FORM,
    "expires_in": "must be a number of seconds from 0 to ten years",
    "refresh_token_expires_at": _MOMENT_FORM,
    "tenant": "must be text of at most 512 characters (a number goes in quotes)",
    "environment": "must be text of at most 63 characters",
    "app": "must be text of at most 63 characters",
    "variables": "must be an object of texts, with names of letters, digits and underscores",
    "metadata": "must be a JSON object",
    "answer": "must be a JSON object: what the token endpoint answered",
    "received_at": _MOMENT_FORM,
    "granted_at": _MOMENT_FORM,
    "learned_lifetime": "must be a number of seconds from 0 to ten years",
    "answer_variables": "must be an object of texts, with names of letters, digits and underscores",
    "client_id": "must be text of at most 512 characters (a number goes in quotes)",
    "status": "must be connecting, active or paused: accounts in another one have nothing to bring",
    "exported_at": _MOMENT_FORM,
    "fingerprints": f"must be a list of up to {FINGERPRINTS_KEPT} texts of {2 * FINGERPRINT_BYTES} hexadecimal digits",
}

_UNSEEN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor, breaks a log line in two, or makes one id look like another."""
_SCHEME: Final = "bearer "
_NUL_IN_JSON: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class LineRejected(Exception):
    """The line cannot be imported. ``reason`` is one sentence without any value of the line."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def parse_json(raw: bytes, *, now: datetime) -> ImportLine:
    """Return the line that ``raw``, a JSON object in UTF-8, stands for. Raises :class:`LineRejected`.

    ``now`` is the database's clock, against which absurd expiries are told.
    """
    try:
        try:
            line = _decoder.decode(raw)
        except msgspec.ValidationError:
            # Its text is for programmers; ours looks at the whole document, which may be broken further on.
            raise LineRejected(_explain(msgspec.json.decode(raw))) from None
    except UnicodeDecodeError:
        raise LineRejected("is not UTF-8 text") from None
    except RecursionError:
        raise LineRejected("is nested too deeply") from None
    except msgspec.ValidationError:
        raise LineRejected("holds a number that is out of range") from None
    except msgspec.DecodeError:
        raise LineRejected(_malformed(raw)) from None
    _check(line, now)
    return line


def _malformed(raw: bytes) -> str:
    """Return what is wrong with a line that could not be decoded."""
    try:
        json.dumps(json.loads(raw), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "holds half a character: a \\u escape of a lone surrogate"
    except (ValueError, RecursionError):
        pass
    return "is not a whole JSON object"


def parse_record(record: Mapping[str, str], *, now: datetime) -> ImportLine:
    """Return the line that ``record``, the filled cells of a CSV row, stands for.

    Raises :class:`LineRejected`.
    """
    values: dict[str, object] = dict(record)
    for name in OBJECTS & values.keys():
        try:
            values[name] = msgspec.json.decode(record[name])
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise LineRejected(f"{name} must be a JSON object, written as text") from None
    for name in ("expires_in", "learned_lifetime"):
        if name in values:
            values[name] = _seconds(record[name])
    try:
        line = msgspec.convert(values, ImportLine, dec_hook=_wrapped)
    except msgspec.ValidationError:
        raise LineRejected(_explain(values)) from None
    _check(line, now)
    return line


def fingerprint(token: Secret) -> bytes:
    """Return 16 bytes by which a token that was imported is known again.

    A plain digest is enough: unlike a password, a refresh token has more entropy than anybody can try (RFC
    6749 section 10.10 asks for 2^128), and a keyed digest would be lost with every rotation of its key.
    """
    return hashlib.sha256(token.reveal().encode()).digest()[:FINGERPRINT_BYTES]


def spelled(value: str) -> str | None:
    """Return ``value`` in quotes when it is surely a name, else None: it might be a misplaced token."""
    digits = sum(character.isdecimal() for character in value)
    if len(value) <= _LONGEST_SPELLED and digits <= 3 and re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", value):
        return f"'{value}'"
    return None


def _wrapped(expected: type, value: object) -> Secret | ConnectAnswer:
    if expected is ConnectAnswer:
        if not isinstance(value, dict):
            raise TypeError(expected.__name__)
        return ConnectAnswer(value)
    if not isinstance(value, str):
        raise TypeError(expected.__name__)
    if not (value.isascii() and value.isprintable() and len(value) <= TOKEN_CHARACTERS):
        raise ValueError(expected.__name__)
    if value and (value[0] == " " or value[-1] == " "):
        raise ValueError(expected.__name__)
    return Secret(value)


_decoder: Final = msgspec.json.Decoder(ImportLine, dec_hook=_wrapped)


def _check(line: ImportLine, now: datetime) -> None:
    """Reject what is well formed and still cannot be meant."""
    if line.answer is not None:
        for name in SAID_BY_ANSWER:
            if getattr(line, name) not in (None, "", Secret("")):
                raise LineRejected(f"has {name} beside answer, which says it too: leave one of them out")
    for name in ("received_at", "granted_at"):
        moment = getattr(line, name)
        if moment is not None and moment > now + CLOCK_TOLERANCE:
            raise LineRejected(f"{name} is in the future")
    latest = now + TEN_YEARS
    if line.expires_at is not None and line.expires_at > latest:
        raise LineRejected("expires_at is more than ten years ahead: leave it out if it is not known")
    if line.refresh_token_expires_at is not None and line.refresh_token_expires_at > latest:
        raise LineRejected(
            "refresh_token_expires_at is more than ten years ahead: leave it out if it has none"
        )
    for name in ("external_id", "tenant", "scope", "token_type", "environment", "app"):
        text = getattr(line, name)
        if text is not None and (found := _UNSEEN.search(text)):
            raise LineRejected(f"{name} holds the control character U+{ord(found[0]):04X}: leave it out")
    for name in ("refresh_token", "access_token"):
        token: Secret | None = getattr(line, name)
        if token is not None and token.reveal()[: len(_SCHEME)].lower() == _SCHEME:
            raise LineRejected(
                f"{name} begins with the word of the Authorization header: give the token alone"
            )
    for name in _STORED_OBJECTS:
        value = getattr(line, name)
        if value and _NUL_IN_JSON.search(msgspec.json.encode(value)):
            raise LineRejected(f"{name} holds the character U+0000, which Postgres cannot store")


def _explain(document: object) -> str:
    """Return what keeps ``document`` from being an :class:`ImportLine`."""
    if not isinstance(document, dict):
        return "is not a JSON object"
    for name in document:
        if name not in FIELDS:
            close = difflib.get_close_matches(str(name).lower(), FIELDS, n=1)
            known = f"did you mean {close[0]}?" if close else f"known are {', '.join(FIELDS)}"
            return f"has the unknown field {spelled(str(name)) or '(not shown)'}: {known}"
    for name in REQUIRED:
        if document.get(name) in (None, ""):
            return f"{name} is missing"
    for name, value in document.items():
        try:
            msgspec.convert(value, _TYPES[name], dec_hook=_wrapped)
        except msgspec.ValidationError:
            return f"{name} {_FORMS[name]}"
    return "is not a line to import"


def _seconds(cell: str) -> object:
    """Return the number in ``cell``, or the cell itself, which is then refused for not being a number."""
    try:
        number = float(cell)
    except ValueError:
        return cell
    return number if math.isfinite(number) else cell
