"""URL and text templates of a definition over its declared variables.

Invariant: an expanded URL never leaves the host that its definition allows, whatever the variables hold.
Variables are checked against their kind and patterns when a request is built; in a path or query they are
percent-encoded; in a host they can only be host characters; the end of a literal host can be completed
only by values that the definition lists. RFC 3986 sections 3.2 to 3.4. Nor does it lead into our own network by an
address or a name that says so (``providers.hosts``).

Braces that are meant as such, in a GraphQL query say, are written twice: ``{{ viewer {{ id }} }}``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal
from urllib.parse import quote

from providers import hosts
from providers.patterns import Pattern

VariableKind = Literal["text", "digits", "label", "host", "url"]

CLIENT_ID: Final = "client_id"
"""The one name that every template may use without declaring it: the app's own client id."""

MAX_TEXT_CHARACTERS: Final = 512
MAX_URL_CHARACTERS: Final = 2048

_BRACES = re.compile(r"\{\{|\}\}|\{([A-Za-z][A-Za-z0-9_]{0,63})\}|[{}]")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL.pattern}(?:\.{_LABEL.pattern})*")
_URL = re.compile(
    r"(https?)://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
    r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?(\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?"
)
_HOST_TEXT = re.compile(r"[a-z0-9.-]*")
_PORT = re.compile(r"[0-9]{1,5}")
_REST_TEXT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*")
_DOMAIN = re.compile(r"\.[a-z0-9-]+(?:\.[a-z0-9-]+)+")
_INNER_DOMAIN = re.compile(r"(?:\.[a-z0-9-]+)+\.")


@dataclass(frozen=True, slots=True)
class VariableRule:
    """What a variable's value may be. ``patterns`` narrows ``kind`` further; any one of them suffices."""

    name: str
    kind: VariableKind
    default: str | None = None
    patterns: tuple[Pattern, ...] = ()

    @property
    def is_listed(self) -> bool:
        """Answer whether the definition lists every value that this variable can have."""
        return bool(self.patterns) and all(pattern.tail is None for pattern in self.patterns)

    def check(self, value: str, *, allow_http: bool) -> str:
        """Return ``value`` as it is used. Raises :class:`ValueError` with the reason, without the value."""
        if self.kind in ("label", "host"):
            value = value.lower()
        if not _HAS_KIND[self.kind](value):
            raise ValueError(_EXPECTED[self.kind])
        if self.kind == "url" and not allow_http and value.startswith("http:"):
            raise ValueError("must be an https URL")
        if self.kind in ("host", "url") and not allow_http and hosts.is_inside(hosts.of(value)):
            raise ValueError(
                "must be a host of the public internet: an address or name of our own network is not"
            )
        fits = hosts.url_fits if self.kind == "url" else Pattern.matches
        if self.patterns and not any(fits(pattern, value) for pattern in self.patterns):
            raise ValueError(f"must be one of {', '.join(pattern.text for pattern in self.patterns)}")
        return value


_EXPECTED: Final[Mapping[str, str]] = {
    "text": f"must be 1 to {MAX_TEXT_CHARACTERS} printable characters, not only dots",
    "digits": "must be digits",
    "label": "must be one part of a host name: letters, digits and hyphens",
    "host": "must be a host name, without scheme, port or path",
    "url": "must be an https URL without user name and fragment",
}
_HAS_KIND: Final[Mapping[str, Callable[[str], bool]]] = {
    "text": lambda value: (
        0 < len(value) <= MAX_TEXT_CHARACTERS and value.isprintable() and value.strip(".") != ""
    ),
    "digits": lambda value: len(value) <= MAX_TEXT_CHARACTERS and value.isascii() and value.isdecimal(),
    "label": lambda value: _LABEL.fullmatch(value) is not None,
    "host": lambda value: _HOST.fullmatch(value) is not None,
    "url": lambda value: len(value) <= MAX_URL_CHARACTERS and _URL.fullmatch(value) is not None,
}


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template. ``pieces`` alternates literal text and variable names, literal first and last."""

    text: str
    pieces: tuple[str, ...]
    encoded_from: int
    """Index of the first piece whose variable is percent-encoded; text templates encode none."""
    begins_with_url: bool = False

    @property
    def names(self) -> frozenset[str]:
        """The variables that this template uses."""
        return frozenset(self.pieces[1::2])

    def expand(self, values: Mapping[str, str]) -> str:
        """Return the text with every variable replaced by its value, which :class:`VariableRule` has checked.

        Raises :class:`ValueError` when a URL that a path is to follow has a query.
        """
        if len(self.pieces) == 1:
            return self.pieces[0]
        parts = list(self.pieces)
        for position in range(1, len(parts), 2):
            value = values[parts[position]]
            parts[position] = quote(value, safe="") if position >= self.encoded_from else value
        if self.begins_with_url and parts[2]:
            if "?" in parts[1]:
                raise ValueError("must be a URL without a query, because a path follows it")
            parts[1] = parts[1].rstrip("/")
        return "".join(parts)


_NO_NAMES: Final[frozenset[str]] = frozenset()


def placeholders(text: str) -> frozenset[str]:
    """Return the names between braces in ``text``, declared or not."""
    return _placeholders(text) if "{" in text else _NO_NAMES


@lru_cache(maxsize=4096)
def _placeholders(text: str) -> frozenset[str]:
    return frozenset(match[1] for match in _BRACES.finditer(text) if match[1])


def occurrences(text: str) -> list[str]:
    """Return the names between braces in ``text``, each as often as it stands there."""
    return [match[1] for match in _BRACES.finditer(text) if match[1]]


def text_template(text: str, variables: Mapping[str, VariableRule]) -> Template:
    """Compile a parameter's or header's value. Raises :class:`ValueError` with the reason."""
    if "{" not in text and "}" not in text:
        return Template(text, (text,), encoded_from=1)
    pieces = _split(text, variables)
    return Template(text, pieces, encoded_from=len(pieces))


def url_template(text: str, variables: Mapping[str, VariableRule], *, allow_http: bool) -> Template:
    """Compile an endpoint. Raises :class:`ValueError` with the reason."""
    if "{" not in text and "}" not in text:
        return _constant_url(text, allow_http)
    return _url(_split(text, variables), text, variables, allow_http=allow_http)


@lru_cache(maxsize=4096)
def _constant_url(text: str, allow_http: bool) -> Template:
    """Compile an endpoint that no variable changes, once: when its definition is checked, and when it is compiled."""
    return _url((text,), text, {}, allow_http=allow_http)


def _url(
    pieces: tuple[str, ...], text: str, variables: Mapping[str, VariableRule], *, allow_http: bool
) -> Template:
    if pieces[0] == "" and len(pieces) > 1 and variables[pieces[1]].kind == "url":
        _check_rest(pieces[2:], variables)
        if len(pieces) > 3 or (pieces[2] and not pieces[2].startswith("/")):
            raise ValueError(f"must go on after {{{pieces[1]}}} with a / and with no further variable")
        return Template(text, pieces, encoded_from=3, begins_with_url=True)
    scheme, separator, _ = pieces[0].partition("://")
    if not separator or scheme not in ("https", "http"):
        raise ValueError("must begin with https://, or with a variable of kind 'url'")
    if scheme == "http" and not allow_http:
        raise ValueError(
            "must begin with https://: tokens never travel in the clear (for a sandbox, "
            "TOKENFLEET_ALLOW_HTTP_PROVIDERS=true allows http)"
        )
    end = _authority_end(pieces, len(scheme) + len(separator), variables)
    if not allow_http and end == 1 and hosts.is_inside(hosts.of(pieces[0])):
        raise ValueError(
            "must have a host of the public internet (for a sandbox, "
            "TOKENFLEET_ALLOW_HTTP_PROVIDERS=true allows others)"
        )
    return Template(text, pieces, encoded_from=end)


def _authority_end(pieces: tuple[str, ...], start: int, variables: Mapping[str, VariableRule]) -> int:
    """Check the host part and what follows; return the index of the first piece after the host."""
    literals: list[str] = []
    for position in range(0, len(pieces), 2):
        literal = pieces[position][start if position == 0 else 0 :]
        host, slash, rest = literal.partition("/")
        literals.append(host)
        if slash or position + 1 == len(pieces):
            _check_host(literals, [variables[name] for name in pieces[1 : position + 1 : 2]])
            _check_rest((slash + rest, *pieces[position + 1 :]), variables)
            return position + 1
    raise AssertionError("a template has a last piece")


def _check_host(literals: list[str], rules: list[VariableRule]) -> None:
    """Check that values of ``rules`` between ``literals`` cannot lead to a host nobody meant."""
    *inner, end = literals
    suffix, colon, port = end.partition(":")
    if not all(map(_HOST_TEXT.fullmatch, (*inner, suffix))) or (colon and not _PORT.fullmatch(port)):
        raise ValueError("has a host that is not made of lower-case letters, digits, dots and hyphens")
    if colon and not 1 <= int(port) <= 65535:
        raise ValueError("has a port that is not between 1 and 65535")
    if not rules:
        if not suffix:
            raise ValueError("has no host")
        return
    for rule in rules:
        if rule.kind not in ("label", "host"):
            raise ValueError(
                f"uses {{{rule.name}}} in its host: give that variable the kind 'label' or 'host'"
            )
    if _DOMAIN.fullmatch(suffix):
        return
    last = rules[-1]
    if suffix:
        raise ValueError(f"has a host that does not end in a domain name after {{{last.name}}}")
    if last.is_listed and (len(rules) == 1 or _INNER_DOMAIN.fullmatch(inner[-1])):
        return
    if inner != [""] or last.kind != "host":
        raise ValueError(
            f"lets {{{last.name}}} end its host: list the permitted values as its pattern, or let a domain "
            "name follow"
        )


def _check_rest(pieces: tuple[str, ...], variables: Mapping[str, VariableRule]) -> None:
    for literal in pieces[0::2]:
        if "#" in literal:
            raise ValueError("has a fragment (#), which never reaches a server")
        if not _REST_TEXT.fullmatch(literal):
            raise ValueError("has a character that a URL cannot have unencoded")
    for name in pieces[1::2]:
        if variables[name].kind == "url":
            raise ValueError(f"uses {{{name}}} after its beginning, where a URL cannot stand")


def _split(text: str, variables: Mapping[str, VariableRule]) -> tuple[str, ...]:
    """Return literal text and variable names in turn, literal first and last."""
    pieces = [""]
    end = 0
    for found in _BRACES.finditer(text):
        pieces[-1] += text[end : found.start()]
        end = found.end()
        if found[1]:
            pieces += [found[1], ""]
        elif len(found[0]) == 1:
            raise ValueError("has a brace that is not part of a {variable}: write {{ and }} for braces")
        else:
            pieces[-1] += found[0][0]
    pieces[-1] += text[end:]
    for name in pieces[1::2]:
        if name not in variables:
            raise UndeclaredVariableError(name)
    return tuple(pieces)


class UndeclaredVariableError(ValueError):
    """A template uses a variable that its definition does not declare."""

    def __init__(self, name: str) -> None:
        super().__init__(f"uses {{{name}}}, which is not declared under [variables]")
        self.name = name
