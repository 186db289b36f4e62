"""A token or key that never prints itself.

Promise: no ``repr``, ``str``, f-string, log line, traceback or pickle of an object that holds a
:class:`Secret` shows its value. Reading it is the explicit act :meth:`Secret.reveal`, which is easy to
search for in a review.
"""

from __future__ import annotations

import hmac
from typing import Final, NoReturn, final

PLACEHOLDER: Final = "[secret]"


@final
class Secret:
    """Wrap one secret string; compare in constant time; print as a placeholder."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the wrapped value. Call it where the value leaves for its one destination."""
        return self._value

    def __repr__(self) -> str:
        return PLACEHOLDER

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(PLACEHOLDER, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled: seal it with tokenfleet_client.envelope instead")
