"""Definitions from files: read, checked whole, every mistake of every file reported at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tomli
from pydantic import ValidationError

from providers.contradictions import contradictions
from providers.problems import Location, Problem, key_text, told
from providers.spec import ProviderSpec
from providers.toml_lines import Lines

MAX_FILE_BYTES: Final = 64 * 1024
"""Twenty times the longest of the catalogue."""
SUFFIX: Final = ".toml"
MAX_KEY_PARTS: Final = 100
"""More parts than this between the dots of one key are no definition, and take the parser minutes."""

_BYTE_ORDER_MARK: Final = "\ufeff"
_TWICE = re.compile(r"Cannot declare \(([^)]*)\) twice")
_NAMES = re.compile(r"'([^']*)'")
_POSITION = re.compile(r"\s*\(at line (\d+), column \d+\)|\s*\(at end of document\)")


@dataclass(frozen=True, slots=True)
class Definition:
    """A definition without mistakes, and the file that holds it."""

    file: str
    spec: ProviderSpec


def read_directory(directory: Path, *, allow_http: bool) -> tuple[list[Definition], list[Problem]]:
    """Return the definitions directly in ``directory``, and every mistake in the others."""
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == SUFFIX and path.is_file())
    except OSError as error:
        return [], [Problem(str(directory), None, "", f"cannot be read: {error.strerror}")]
    return read_files(files, allow_http=allow_http)


def read_files(files: Iterable[Path], *, allow_http: bool) -> tuple[list[Definition], list[Problem]]:
    """Return the definitions in ``files``, and every mistake in the others. Two of one name are a mistake."""
    definitions: dict[str, Definition] = {}
    problems: list[Problem] = []
    for file in files:
        spec, mistakes = read_definition(file, allow_http=allow_http)
        problems.extend(mistakes)
        if spec is None:
            continue
        if (other := definitions.get(spec.name)) is not None:
            problems.append(Problem(str(file), None, "name", f"is {spec.name!r}, as in {other.file}"))
            continue
        definitions[spec.name] = Definition(str(file), spec)
    return list(definitions.values()), problems


def read_definition(file: Path, *, allow_http: bool) -> tuple[ProviderSpec | None, list[Problem]]:
    """Return the definition in ``file``, or None and its mistakes."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            return None, [Problem(str(file), None, "", f"is larger than {MAX_FILE_BYTES // 1024} KiB")]
        text = data.decode("utf-8").removeprefix(_BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        return None, [Problem(str(file), None, "", "is not UTF-8 text")]
    except OSError as error:
        return None, [Problem(str(file), None, "", f"cannot be read: {error.strerror}")]
    if (line := _endless_key(text)) is not None:
        return None, [Problem(str(file), line, "", f"has a key of more than {MAX_KEY_PARTS} parts")]
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        return None, [_syntax(file, str(error))]
    except ValueError:
        # Python reads no number of more than some thousand digits.
        return None, [Problem(str(file), None, "", "holds a number that is too long")]
    except RecursionError:
        return None, [Problem(str(file), None, "", "is nested too deeply")]
    try:
        spec = ProviderSpec.model_validate(document)
    except ValidationError as error:
        return None, _problems(file, text, told(error.errors(include_url=False)))
    findings = contradictions(spec, allow_http=allow_http)
    if findings:
        return None, _problems(file, text, findings)
    return spec, []


def validate_paths(paths: Iterable[Path], *, allow_http: bool = False) -> list[Problem]:
    """Return every mistake in the definition files, and in all of the directories, that ``paths`` name."""
    files: list[Path] = []
    problems: list[Problem] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
        elif found := sorted(entry for entry in path.iterdir() if entry.suffix == SUFFIX):
            files.extend(found)
        else:
            problems.append(Problem(str(path), None, "", f"holds no {SUFFIX} file"))
    _, mistakes = read_files(dict.fromkeys(files), allow_http=allow_http)
    return problems + mistakes


def _problems(file: Path, text: str, findings: list[tuple[Location, str]]) -> list[Problem]:
    lines = Lines(text)
    return sorted(
        (Problem(str(file), lines.of(location), key_text(location), reason) for location, reason in findings),
        key=lambda problem: (problem.line or 0, problem.key),
    )


def _endless_key(text: str) -> int | None:
    """Return the line of a key that has too many parts to be parsed in reasonable time."""
    if text.count(".") <= MAX_KEY_PARTS:
        return None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.partition("=")[0].partition("#")[0].count(".") > MAX_KEY_PARTS:
            return number
    return None


def _syntax(file: Path, message: str) -> Problem:
    position = _POSITION.search(message)
    line = int(position[1]) if position and position[1] else None
    reason = _POSITION.sub("", message)
    if twice := _TWICE.fullmatch(reason):
        reason = f"[{'.'.join(_NAMES.findall(twice[1]))}] is there twice"
    elif reason == "Cannot overwrite a value":
        reason = "a key is there twice"
    return Problem(str(file), line, "", f"is not TOML: {reason}")
