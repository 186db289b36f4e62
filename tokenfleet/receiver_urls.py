"""Where webhooks may be sent: receivers are named by customers, so what they name is not to be trusted.

Invariant: no packet goes to an address that is not of the public internet. A URL is looked at when it is added, for
what can be seen without asking anybody; every address that its name resolves to is looked at by
``workers.receivers`` each time before a connection is made to it.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final
from urllib.parse import urlsplit

from tokenfleet.errors import UserError

MAX_URL_CHARACTERS: Final = 2048

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_CARRIERS: Final = tuple(
    ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
"""Within global unicast, and not to be reached or carrying an IPv4 address in disguise: Teredo and other special
purposes, documentation, 6to4. NAT64 (64:ff9b::/96) and mapped addresses (::ffff:0:0/96) lie outside of it."""
_SPECIAL_V4: Final = tuple(ipaddress.IPv4Network(text) for text in ("192.88.99.0/24", "192.0.0.0/24"))


def is_public(address: str) -> bool:
    """Answer whether ``address`` is one of the public internet; anything that is no address is not."""
    try:
        parsed: _Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        return (
            parsed.is_global and not parsed.is_multicast and not any(parsed in each for each in _SPECIAL_V4)
        )
    return (
        parsed in _GLOBAL_UNICAST
        and parsed.scope_id is None
        and parsed.is_global
        and not any(parsed in each for each in _CARRIERS)
    )


def check_url(url: str, *, allow_private: bool) -> str:
    """Return ``url`` when webhooks may be sent to it as far as can be seen.

    ``allow_private`` allows plain http and private addresses, for tests and sandboxes. Raises :class:`UserError` in
    one sentence that never repeats a password.
    """
    if len(url) > MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url:
        raise UserError(
            f"a webhook URL has at most {MAX_URL_CHARACTERS} characters, printable ASCII, special ones "
            "percent-encoded"
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"this is not a URL ({error}): write https://host/path") from None
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise UserError(
            "webhooks are sent over https only: write https://host/path (for tests, "
            "TOKENFLEET_ALLOW_PRIVATE_WEBHOOKS allows http)"
        )
    if not host:
        raise UserError("the URL names no host: write https://host/path")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise UserError(
            "a webhook URL holds no user, password or fragment: receivers know us by the signature"
        )
    address = _address_in(host)
    if not allow_private and address is not None and not is_public(address):
        raise UserError(
            f"{host} is not an address of the public internet, and webhooks go nowhere else (for tests, "
            "TOKENFLEET_ALLOW_PRIVATE_WEBHOOKS allows it)"
        )
    return url


def _address_in(host: str) -> str | None:
    """Return the address that ``host`` is, in whatever spelling systems take for one; None for a name."""
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        # Never anything else (RFC 6761, section 6.3).
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        # 127.1, 2130706433, 0x7f000001 and 0177.0.0.1 are addresses to the C library.
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        return None
