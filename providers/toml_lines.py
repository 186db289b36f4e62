"""Where in TOML text a key or an element stands.

The standard parser keeps no positions. :class:`Lines` reads the text once more, and only when there is something to
report. It relies on the text being TOML, which the parser has said by then, and skips what it needs not understand.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from typing import Final

Location = tuple[str | int, ...]

_SPACE: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART: Final = re.compile(r"[ \t]*([A-Za-z0-9_-]+|\"(?:[^\"\\]|\\.)*\"|'[^']*')[ \t]*")
_STRING: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\]|\\.)*"|\'[^\']*\'', re.DOTALL
)
_PLAIN: Final = re.compile(r"[^,\]}\n#]*")


class Lines:
    """Finds the line of a key in TOML text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[Location, int] = {}
        self._last: dict[Location, int] = {}
        """Index of the present element of each array of tables."""
        self._read()

    def of(self, location: Location) -> int | None:
        """Return the line of what stands at ``location``, else of the nearest table around it.

        The one element of a list may have been written without its brackets, and so without an index.
        """
        while location:
            without = tuple(part for part in location if part != 0)
            for written in (location, without):
                if written in self._lines:
                    return self._lines[written]
            location = location[:-1]
        return None

    def _read(self) -> None:
        table: Location = ()
        position = self._skip(0)
        while position < len(self._text):
            if self._text[position] == "[":
                table, position = self._header(position)
            else:
                position = self._assignment(table, position)
            position = self._skip(position)

    def _header(self, position: int) -> tuple[Location, int]:
        is_array = self._text.startswith("[[", position)
        names, end = self._key(position + 1 + is_array)
        table: Location = ()
        for depth, name in enumerate(names, start=1):
            table = (*table, name)
            if is_array and depth == len(names):
                self._last[table] = self._last.get(table, -1) + 1
            self._note(table, position)
            if table in self._last:
                table = (*table, self._last[table])
        self._note(table, position)
        return table, end + 1 + is_array

    def _assignment(self, table: Location, position: int) -> int:
        """Read ``key = value`` and return where it ends."""
        names, end = self._key(position)
        for depth in range(1, len(names) + 1):
            self._note((*table, *names[:depth]), position)
        return self._value((*table, *names), end + 1)

    def _value(self, location: Location, position: int) -> int:
        position = self._skip(position)
        opening = self._text[position : position + 1]
        if opening in ("[", "{"):
            return self._members(location, position + 1, "]" if opening == "[" else "}")
        match = _STRING.match(self._text, position) or _PLAIN.match(self._text, position)
        return match.end() if match else position

    def _members(self, location: Location, position: int, closing: str) -> int:
        """Read a list or an inline table up to its ``closing`` bracket."""
        index = 0
        while (position := self._skip(position)) < len(self._text):
            if self._text[position] == closing:
                return position + 1
            if self._text[position] == ",":
                index += 1
                position += 1
            elif closing == "}":
                position = self._assignment(location, position)
            else:
                self._note((*location, index), position)
                position = self._value((*location, index), position)
        return position

    def _key(self, position: int) -> tuple[tuple[str, ...], int]:
        """Return the parts of the key at ``position``, and where it ends."""
        names: list[str] = []
        while match := _KEY_PART.match(self._text, position):
            part = match[1]
            names.append(tomllib.loads(f"key = {part}")["key"] if part[0] in "\"'" else part)
            position = match.end()
            if not self._text.startswith(".", position):
                break
            position += 1
        return tuple(names), position

    def _skip(self, position: int) -> int:
        match = _SPACE.match(self._text, position)
        return match.end() if match else position

    def _note(self, location: Location, position: int) -> None:
        self._lines.setdefault(location, bisect_right(self._starts, position))
