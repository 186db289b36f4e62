"""Which host a URL goes to, as far as its text shows it.

Values of variables come from customers and from answers, so what they name is not to be trusted: an address that is not
of the public internet is refused where it can be seen without asking anybody. A *name* that resolves to such an address
is not looked at: servers inside of one's own network are named so, and over https one that is not meant cannot prove
that it has the name.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from providers.patterns import Pattern
from tokenfleet.receiver_urls import is_public

_PARTS = re.compile(r"([A-Za-z*]+)://([^/?#]*)(.*)", re.DOTALL)
_PORT = re.compile(r":[0-9]*$")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LOCAL: Final = ("localhost", "localhost.localdomain")


def of(text: str) -> str:
    """Return the host of a URL without port and brackets, or ``text`` itself when it is only a host."""
    _, separator, rest = text.partition("://")
    host = rest.partition("/")[0].partition("?")[0] if separator else text
    if ":" in host:
        host = _PORT.sub("", host).removeprefix("[").removesuffix("]")
    return host.removesuffix(".").lower()


def is_inside(host: str) -> bool:
    """Answer whether ``host`` says that it is not of the public internet: an address that is not, or localhost.

    Resolvers also read 127.1, 2130706433 and 0x7f000001 as addresses: what ends in a number and is not written as
    four numbers is none of the public internet.
    """
    last = host.rpartition(".")[2]
    if ":" in host or (last[:1].isdigit() and _NUMBER.fullmatch(last)):
        return not is_public(host)
    return host in _LOCAL or last == "localhost"


def url_fits(pattern: Pattern, url: str) -> bool:
    """Answer whether ``url`` fits ``pattern``, scheme, host and rest each for itself: no star goes beyond a host."""
    theirs, ours = _PARTS.fullmatch(url), _PARTS.fullmatch(pattern.text)
    if theirs is None or ours is None:
        return False
    return all(_fits(part, text) for part, text in zip(ours.groups(), theirs.groups(), strict=True))


def pattern_mistake(pattern: str) -> str | None:
    """Return what is wrong with a pattern of URLs, or None."""
    parts = _PARTS.fullmatch(pattern)
    if parts is None or not parts[2]:
        return "must name scheme and host, as URLs do: https://*.example.com"
    if parts[2].endswith("*"):
        return "lets the host end in anything: write the end of the permitted hosts, and a / before what may follow"
    return None


@lru_cache(maxsize=4096)
def _compiled(text: str) -> Pattern | None:
    return Pattern.compile(text) if text.strip("*") else None


def _fits(part: str, text: str) -> bool:
    compiled = _compiled(part)
    return compiled.matches(text) if compiled is not None else bool(part) or not text
