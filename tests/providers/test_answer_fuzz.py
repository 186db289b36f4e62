"""Token responses that nobody would write down: reading and deciding are total, and nobody flips for them.

The judge of "a definite word" is written anew here, plainly and without the code under test.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers import Answer, Failure, FailureKind, Provider, load_registry
from providers.content_encoding import decoded
from providers.transport import MAX_BODY_BYTES
from tests.providers.answer_corpus import cases
from tests.providers.definitions import provider
from tokenfleet.outcome import GrantRejected, Outcome, Refreshed, RequestRejected, Throttled, Undescribed
from tokenfleet.policy import (
    BACKOFF_FLOOR,
    Decision,
    Known,
    PauseApp,
    Quarantine,
    Replay,
    RequireReauth,
    RetryLater,
    Save,
    decide,
)
from tokenfleet.presented import Presented
from tokenfleet.tokens import Margins
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEEPS = provider(
    '[answer]\nkeeps_access_token = true\nexpires_at = { path = "ends", format = "http_date" }\n'
    'expires_in = { path = "expires_in", format = "hours_minutes_seconds", zero_is_never = true }\n'
    'success = [{ path = "error", absent = true }, { path = "refresh_token" }]',
    lifetimes="access_seconds = 3600",
)
CATALOG = {one.name: one for one in load_registry()} | {"example": provider(), "keeps": KEEPS}
ROTATING = sorted(name for name, one in CATALOG.items() if one.presents is Presented.REFRESH_TOKEN)
FLAT = [name for name in ROTATING if "refresh_token" in CATALOG[name].spec.answer.refresh_token]
"""Definitions that find tokens where the standard puts them."""
SENTINEL = "s3ntinel-RT-0123456789abcdef"
BODIES = sorted({case.body for case in cases() if len(case.body) < 2000})
FORM = "application/x-www-form-urlencoded"

WORDS = [
    "invalid_grant", "invalid_client", "invalid_request", "server_error", "bad_refresh_token",
    "BAD_REFRESH_TOKEN", "invalid_rapt", "interaction_required", "at-1", "Bearer", "3600", SENTINEL,
]  # fmt: skip
NAMES = [
    "access_token", "refresh_token", "expires_in", "token_type", "scope", "error", "error_description", "error_codes",
    "error_subtype", "status", "code", "reason", "instance_url", "refresh_token_expires_in", SENTINEL,
]  # fmt: skip

texts = st.sampled_from(WORDS).map(json.dumps) | st.sampled_from(
    [r'"\ud800"', r'"a\u0000b"', '"a\nb"', r'"\ufffd"', '""', '"\N{GREEK SMALL LETTER ALPHA}"']
)
literals = st.sampled_from(
    ["null", "true", "false", "0", "-1", "3600", "1e400", "-1e400", "NaN", "Infinity", "0.0000001", "1E3"]
) | st.sampled_from(["9" * 40, "9" * 5000, "700082", "50173", "40030", "nonsense", "'x'", "01", "+1"])


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    """Write an object by hand, so that names may stand twice and commas may be wrong."""
    names = st.sampled_from(NAMES).map(json.dumps) | st.sampled_from(['""', r'"\ud800"', "x", '"a\0"'])
    members = draw(st.lists(st.tuples(names, values), max_size=6))
    comma = draw(st.sampled_from([",", ", ", ",,", " "]) if draw(st.integers(0, 9)) == 0 else st.just(","))
    return "{" + comma.join(f"{name}:{value}" for name, value in members) + "}"


documents = st.recursive(
    texts | literals,
    lambda inner: objects(inner) | st.lists(inner, max_size=4).map(lambda each: f"[{','.join(each)}]"),
    max_leaves=12,
)


MEMBERS = [
    '"error":"invalid_grant"', '"error":"bad_refresh_token"', '"error":"server_error"', '"error":null', '"x":1',
    '"error_codes":[700082]', '"error_codes":1', '"status":"BAD_REFRESH_TOKEN"', '"error":["invalid_grant"]',
]  # fmt: skip
almost_definite = st.lists(st.sampled_from(MEMBERS), min_size=1, max_size=3).map(
    lambda few: f"{{{','.join(few)}}}"
)
"""Words against a grant, alone and in company that takes their meaning away."""


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Write a document, or take one of the corpus; then do to it what networks and proxies do."""
    charset = draw(
        st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
    )
    body = draw(
        (almost_definite | objects(documents)).map(lambda text: text.encode(charset, "replace"))
        | documents.map(lambda text: text.encode(charset, "replace"))
        | st.sampled_from(BODIES)
        | st.binary(max_size=60)
    )
    match draw(st.sampled_from(["whole"] * 5 + ["cut", "flip", "insert", "twice", "behind", "nested"])):
        case "cut":
            return body[: draw(st.integers(0, len(body)))]
        case "flip" if body:
            place, bit = draw(st.integers(0, len(body) - 1)), draw(st.integers(0, 7))
            return body[:place] + bytes([body[place] ^ (1 << bit)]) + body[place + 1 :]
        case "insert":
            place = draw(st.integers(0, len(body)))
            return body[:place] + draw(st.sampled_from([b"\0", b"\xff", b'"', b"\r\n", b"}"])) + body[place:]
        case "twice":
            return body + body
        case "behind":
            return body + draw(st.sampled_from([b"<!-- -->", b"\0\0", b"\n\n", b"0", b"}"]))
        case "nested":
            depth = draw(st.sampled_from([1, 50, 5000]))
            return b'{"x":' * depth + body + b"}" * depth
    return body


header_maps = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "text/html", FORM, FORM.upper(), "\xff", ""]),
        "retry-after": st.sampled_from(["5", "-1", "9" * 30, "Sun, 01 Mar 2026 12:00:30 GMT", "\0"])
        | st.text(max_size=12),
    },
)
statuses = st.sampled_from([200, 200, 200, 400, 400, 401, 403, 429, 500, 503, 204, 302]) | st.integers(
    -1, 1000
)
answers = st.builds(Answer, statuses, header_maps, bodies()) | st.builds(
    Answer, statuses, header_maps, st.just(b""), st.sampled_from(["answer_cut", "timeout", "bad_encoding"])
)
exchanges = answers | st.builds(
    Failure, st.sampled_from(FailureKind), st.sampled_from(["timeout", "dns_failed"])
)
situations = st.builds(
    Known,
    attempts=st.integers(0, 40),
    unanswered=st.integers(0, 5),
    replayed=st.booleans(),
    margins=st.just(Margins()),
    last_lifetime=st.none() | st.timedeltas(),
)


def loads(body: bytes) -> Any:
    """Read a body as the strictest reader would, but for Latin-1 in a description; None when it cannot."""

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if found.setdefault(name, value) not in (value, None, "") and value not in (None, ""):
                raise ValueError("two readers would not agree")
            if value not in (None, ""):
                found[name] = value
        return found

    text = body.decode(json.detect_encoding(body), "replace")
    try:
        return json.loads(text.strip(), object_pairs_hook=members, strict=False)
    except (ValueError, RecursionError):
        return None


def at(path: str, document: Any) -> Iterator[Any]:
    """Yield what stands at a path of the catalogue: names, and ``[]`` at its end."""
    for step in path.replace("[]", ".[]").split("."):
        if step == "[]":
            yield from document if isinstance(document, list) else ()
            return
        if not isinstance(document, dict):
            return
        document = document.get(step)
    yield document


def is_definite(one: Provider, answer: Answer) -> bool:
    """Answer whether the provider has said, in words of the standard or of its definition, that the grant is gone."""
    if answer.flaw or not (200 <= answer.status < 500 and answer.status != 429) or 300 <= answer.status < 400:
        return False
    document = loads(answer.body)
    if answer.headers.get("content-type", "").lower() == FORM and document is None:
        return b"error=invalid_grant" in answer.body or b"error=" in answer.body
    if isinstance(document, dict) and document.get("error") == "invalid_grant":
        return True
    rules = [rule for rule in one.spec.errors if rule.outcome == "grant_rejected"]
    return any(
        str(found) in map(str, rule.value) and not isinstance(found, bool)
        for rule in rules
        if answer.status in rule.status or not rule.status
        for path in rule.path
        for found in at(path, document)
    )


def soonest(decision: Decision) -> datetime | None:
    match decision:
        case Save(at, _) | RetryLater(at) | Quarantine(at) | PauseApp(at):
            return at
    return None


@settings(max_examples=400)
@given(exchanges, st.sampled_from(sorted(CATALOG)), situations, st.floats(0, 1, exclude_max=True))
def test_whatever_arrives_is_read_and_decided_and_flips_nobody_without_a_definite_word(
    exchange: Answer | Failure, name: str, known: Known, chance: float
) -> None:
    outcome = CATALOG[name].read(exchange, now=NOW)
    decision = decide(outcome, known, now=NOW, chance=chance)
    assert isinstance(outcome, get_args(Outcome))
    assert isinstance(decision, get_args(Decision))
    moment = soonest(decision)
    assert moment is None or moment >= NOW + BACKOFF_FLOOR, "nobody is asked in a busy loop"
    assert not (isinstance(decision, Replay) and known.replayed)
    if isinstance(decision, RequireReauth):
        assert isinstance(outcome, GrantRejected)
        assert isinstance(exchange, Answer)
        assert is_definite(CATALOG[name], exchange)


@settings(max_examples=200)
@given(exchanges, st.sampled_from(sorted(CATALOG)))
def test_what_is_told_of_an_answer_holds_nothing_secret_of_it(exchange: Answer | Failure, name: str) -> None:
    outcome = CATALOG[name].read(exchange, now=NOW)
    assert "s3ntinel" not in repr(outcome)
    if isinstance(outcome, Refreshed):
        return
    assert set(outcome.code) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-")
    assert 1 <= len(outcome.code) <= 64
    if isinstance(outcome, Undescribed):
        assert len(outcome.shape) < 600
        assert outcome.shape.isascii()
        assert outcome.shape.isprintable()
    if isinstance(outcome, Throttled) and outcome.retry_after is not None:
        assert outcome.retry_after >= timedelta(0)


WORD = b'{"error": "invalid_grant", "error_codes": [700082], "status": "BAD_REFRESH_TOKEN", "x": {"y": []}}'
CONTRADICTIONS = [b'"error": "server_error"', b'"error": ["invalid_grant"]', b'"error": {}', b'"error": 1']
REST = b'"error_codes": 1, "status": 1}'
spoilt_words = st.one_of(
    st.integers(1, len(WORD) - 1).map(lambda length: WORD[:length]),
    st.sampled_from([b"<!-- -->", b"0", b"\0", b"}", b"{}", WORD]).map(lambda behind: WORD + behind),
    st.sampled_from([b"\xff", b"0", b"}", b"Warning: ", b"callback("]).map(lambda before: before + WORD),
    st.sampled_from(CONTRADICTIONS).map(lambda member: WORD[:-1] + b", " + member + b", " + REST),
    st.sampled_from(CONTRADICTIONS).map(lambda member: b"{" + member + b", " + WORD[1:-1] + b", " + REST),
)


@given(spoilt_words, st.sampled_from([200, 400, 401, 403]), st.sampled_from(ROTATING))
def test_a_word_against_a_grant_that_is_spoilt_is_no_definite_one(
    body: bytes, status: int, name: str
) -> None:
    assert isinstance(CATALOG[name].read(Answer(status, {}, WORD), now=NOW), GrantRejected)
    assert not isinstance(CATALOG[name].read(Answer(status, {}, body), now=NOW), GrantRejected)


small = texts | literals | objects(texts | literals)
odd_members = st.lists(
    st.tuples(
        st.sampled_from([name for name in NAMES if name not in {"access_token", "refresh_token", "error"}])
        | st.text(max_size=6).filter(lambda name: name not in {"access_token", "refresh_token", "error"}),
        small,
    ),
    max_size=3,
)


@settings(max_examples=200)
@given(
    odd_members,
    odd_members,
    st.none() | small,
    st.sampled_from(FLAT),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([b"", b"<!-- -->", b"\0"]),
)
def test_a_new_refresh_token_is_found_whatever_stands_around_it(
    before: list[tuple[str, str]],
    after: list[tuple[str, str]],
    access_token: str | None,
    name: str,
    charset: str,
    behind: bytes,
) -> None:
    """Losing it would lose the account. Only a definition's or the standard's own word goes before it."""
    members = [*before, ("refresh_token", '"rt-2"'), *after]
    if access_token is not None:
        members.insert(len(before), ("access_token", access_token))
    text = "{" + ",".join(f"{json.dumps(member)}:{value}" for member, value in members) + "}"
    body = text.encode(charset, "surrogatepass")
    try:
        whole = json.loads(body.decode(json.detect_encoding(body), "replace"), strict=False, parse_int=len)
    except (ValueError, RecursionError):
        return
    if charset == "utf-16" or not isinstance(whole.get("access_token"), str):
        behind = b""
    outcome = CATALOG[name].read(Answer(200, {"content-type": "application/json"}, body + behind), now=NOW)
    if isinstance(outcome, Refreshed):
        assert outcome.answer.refresh_token == Secret("rt-2")
    elif isinstance(outcome, Undescribed):
        assert outcome.refresh_token == Secret("rt-2")
    else:
        assert (
            behind
            or is_definite(CATALOG[name], Answer(200, {}, body))
            or isinstance(outcome, RequestRejected)
        )


@given(
    st.binary(max_size=300),
    st.sampled_from(["gzip", "deflate", "x-gzip", "br", "zstd", "gzip, br", "", "GZIP"]),
)
def test_unpacking_is_total(body: bytes, encoding: str) -> None:
    for packed in (body, gzip.compress(body, mtime=0), zlib.compress(body), gzip.compress(body)[:-3]):
        unpacked, flaw = decoded(packed, encoding, 100)
        assert len(unpacked) <= 100
        assert flaw in {None, "bad_encoding", "unknown_encoding", "answer_cut", "answer_too_large"}


SIZE = MAX_BODY_BYTES - 100
HEAVY = {
    "numbers": b"[" + b"1," * (SIZE // 2) + b"1]",
    "long number": b'{"expires_in": ' + b"9" * SIZE + b"}",
    "long fraction": b'{"expires_in": 0.' + b"9" * SIZE + b"}",
    "long exponent": b'{"expires_in": 1e' + b"9" * SIZE + b"}",
    "repeated name": b"{" + b",".join(b'"error":%d' % n for n in range(SIZE // 15)) + b"}",
    "many names": b"{" + b",".join(b'"a%d":0' % n for n in range(SIZE // 11)) + b"}",
    "objects": b'{"errors": [' + b'{"code":1},' * (SIZE // 11) + b"{}]}",
    "brackets": b"[" * SIZE,
    "braces": b'{"a":' * (SIZE // 5),
    "escapes": b'{"error": "' + rb"\ud83d\ude00" * (SIZE // 12) + b'"}',
    "white space": b" " * SIZE + b"{}",
    "form": b"a=1&" * (SIZE // 4),
    "form without end": b"a=" + b"%41" * (SIZE // 3),
    "description": b'{"error": "x", "error_description": "' + b"rate limi" * (SIZE // 9) + b'"}',
    "dots": b'{"access_token": "' + b"." * SIZE + b'"}',
    "words": b'{"error": "' + b"a_" * (SIZE // 2) + b'"}',
    "utf-16": b"\xff\xfe" + ("{" + " " * (SIZE // 2 - 10) + "}").encode("utf-16-le"),
}


@pytest.mark.parametrize("kind", HEAVY)
def test_a_body_of_the_permitted_size_takes_a_bounded_time_to_read(kind: str) -> None:
    """Time of this thread's own processor, so a busy machine does not count."""
    answer = Answer(200, {"content-type": "application/json"}, HEAVY[kind])
    spent: dict[str, float] = {}
    for name in ("example", "microsoft"):
        began = time.thread_time()
        CATALOG[name].read(answer, now=NOW)
        spent[name] = time.thread_time() - began
    assert max(spent.values()) < 0.5, spent
