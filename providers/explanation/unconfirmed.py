"""What of a definition nobody has confirmed, so that the sentences about it can be marked.

``unverified`` is prose for people. Its statements are sorted into topics by their words, or by the key with which
one begins (``lifetimes.access_seconds: from general knowledge``). A statement that fits no topic marks nothing; all of
them are shown in full beside the marks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import Final


class Topic(StrEnum):
    """What a statement can be about, named by the keys that say it."""

    REQUEST = "refresh"
    CLIENT = "client"
    ANSWER = "answer"
    ERRORS = "errors"
    ROTATION = "rotation.policy"
    GRACE = "rotation.grace"
    FAMILY = "rotation.family_revocation"
    MAX_LIVE = "rotation.max_live"
    ACCESS_LIFE = "lifetimes.access"
    IDLE = "lifetimes.refresh_idle_seconds"
    ABSOLUTE = "lifetimes.refresh_absolute_seconds"
    EARLY = "lifetimes.earliest_refresh_seconds"
    AGE = "lifetimes.minimum_age_seconds"
    PACE = "rate"
    PROBE = "probe"
    REVOKE = "revoke"
    STEPS = "steps"
    ASSERTION = "assertion"
    CONNECT = "connect"
    VARIABLES = "variables"


_ALONE: Final[Sequence[tuple[str, Collection[Topic]]]] = (
    (r"not complete", ()),
    (r"revocation|revoke request|deauthoriz|revoking an", {Topic.REVOKE}),
    (r"\bprobe|userinfo|still (answers|serves)|API accepts|\bmissing_|in headers of every", {Topic.PROBE}),
)
"""Words that settle what a statement is about, whatever else it mentions."""
_WORDS: Final = (
    (r"\blifetimes\b|how long tokens live", {Topic.ACCESS_LIFE, Topic.IDLE, Topic.ABSOLUTE}),
    (
        (
            r"access tokens?('s)? (exact )?(life|lives?|lifetime|expir|never end)"
            r"|life of (an|the) access|the same token|the old token"
        ),
        {Topic.ACCESS_LIFE},
    ),
    (r"expiry|expires_in|as a moment|tells its end", {Topic.ANSWER}),
    (r"without use|unused|each use starts|idle|inactiv", {Topic.IDLE}),
    (
        r"refresh token( lives| dies|'s life)|how long a refresh|of a refresh token|be used until",
        {Topic.IDLE, Topic.ABSOLUTE},
    ),
    (r"absolute|after consent|a grant|how long (a|the) grant", {Topic.ABSOLUTE}),
    (r"rotat|(new|no) refresh token|same refresh token|stays? the same|token changes", {Topic.ROTATION}),
    (
        (
            r"(replaced|previous) (refresh token|one)|answered alike"
            r"|good for one use|lost answer|dead at once|token before works"
        ),
        {Topic.GRACE},
    ),
    (r"presenting|reuse|replay|family", {Topic.FAMILY}),
    (r"how many|(be|is) alive|alive at once|cap on", {Topic.MAX_LIVE}),
    (r"rate limit|requests? (a|per) second|too many requests|\bpace\b|throttles", {Topic.PACE}),
    (r"too early|earliest|before the end", {Topic.EARLY}),
    (r"younger|hours old|minimum age", {Topic.AGE}),
    (
        (
            r"\berrors?\b|status(es)?\b|AADSTS|wording|answer \d|shapes? of|spell"
            r"|as \d{3}|with \d{3}|answers? \d{3}|\b(sub)?codes?\b|(is|are) (told as|refused)|means a dead|is told"
        ),
        {Topic.ERRORS},
    ),
    (r"authenticat|credentials go|certificate|client (secret|id)|the secret|public client", {Topic.CLIENT}),
    (
        (
            r"refresh request|(path|body) (of|has)|content type|parameters? "
            r"|JSON or a form|grant type|redirect_uri|the scope|\bhosts?\b|authorization serv"
        ),
        {Topic.REQUEST},
    ),
    (r"assertion|signed|audience|claims", {Topic.ASSERTION}),
    (r"\bsteps?\b|\bsession\b", {Topic.STEPS}),
)


def _compiled(
    table: Iterable[tuple[str, Collection[Topic]]],
) -> tuple[tuple[re.Pattern[str], frozenset[Topic]], ...]:
    return tuple((re.compile(words, re.IGNORECASE), frozenset(topics)) for words, topics in table)


_SETTLING: Final = _compiled(_ALONE)
_TELLING: Final = _compiled(_WORDS)
_KEY: Final = re.compile(r"([a-z][a-z_]*(?:\.[a-z_]+)*)(?:\[\d+\])?(?:\.[a-zA-Z_.]+)?:")


def topics_of(statement: str) -> frozenset[Topic]:
    """Return what ``statement`` is about."""
    if named := _KEY.match(statement):
        exact = frozenset(topic for topic in Topic if _covers(topic, named[1]))
        if exact:
            return exact
    for words, topics in _SETTLING:
        if words.search(statement):
            return topics
    return frozenset(topic for words, topics in _TELLING if words.search(statement) for topic in topics)


class Unconfirmed:
    """Tells which sentences a definition's ``unverified`` puts in doubt.

    A statement about errors that names one of the ``codes`` of the definition's rules doubts only the rules that
    have it.
    """

    def __init__(self, statements: Iterable[str], codes: Iterable[str] = ()) -> None:
        known = frozenset(codes)
        self._doubts = [
            (topics_of(statement), known & frozenset(_CODE.findall(statement))) for statement in statements
        ]

    def covers(self, topics: frozenset[Topic], codes: frozenset[str] = frozenset()) -> bool:
        """Answer whether a sentence about ``topics``, of a rule that has these ``codes``, is in doubt."""
        return any(
            topics & doubted and (not named or Topic.ERRORS not in topics or named & codes)
            for doubted, named in self._doubts
        )


_CODE: Final = re.compile(r"[A-Za-z0-9_-]+")


def _covers(topic: Topic, key: str) -> bool:
    """Answer whether ``key`` names the topic, a table around it, or a key within it."""
    return topic.value.startswith(key) or key.startswith(topic.value)
