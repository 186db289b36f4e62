"""The kinds of values that a definition is written with: forms, paths, patterns, statuses, lists.

Each refuses what does not have its form, in words that complete a sentence beginning with the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from providers.paths import MAX_PATH_CHARACTERS, PATH_FORM, Path
from providers.patterns import MAX_PATTERN_CHARACTERS, Pattern

TEN_YEARS_SECONDS: Final = 315_360_000


@dataclass(frozen=True, slots=True)
class _Form:
    """Annotates text that has a form; a refusal says in words what is ``expected``."""

    pattern: str
    expected: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        compiled = re.compile(self.pattern)

        def check(value: str) -> str:
            if not compiled.fullmatch(value):
                raise ValueError(self.expected)
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "pattern": f"^(?:{self.pattern})$"}


def _compiles(compile_text: Callable[[str], object]) -> AfterValidator:
    def check(value: str) -> str:
        compile_text(value)
        return value

    return AfterValidator(check)


def listed(value: object) -> object:
    """One value may be written without brackets; TOML lists become tuples."""
    if isinstance(value, list):
        return tuple(value)
    return value if isinstance(value, tuple) else (value,)


def from_path(value: object) -> object:
    """A path alone may stand for the table that only names a path."""
    return {"path": value} if isinstance(value, (str, list)) else value


Name = Annotated[
    str, _Form(r"[a-z][a-z0-9_]{1,62}", "must be 2 to 63 lower-case letters, digits and underscores")
]
VariableName = Annotated[str, _Form(r"[A-Za-z][A-Za-z0-9_]{0,63}", "must be letters, digits and underscores")]
ParameterName = Annotated[
    str, _Form(r"[\x21-\x7e]{1,64}", "must be 1 to 64 printable characters without spaces")
]
HeaderName = Annotated[
    str, _Form(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", "must be a header name (RFC 9110 section 5.1)")
]
HeaderValue = Annotated[str, _Form(r"[\x20-\x7e]{1,512}", "must be printable ASCII on one line")]
Code = Annotated[str, _Form(r"[a-z0-9_.-]{1,64}", "must be 1 to 64 of a-z, 0-9, _ . -")]
Link = Annotated[str, _Form(r"https://[!-~]{3,500}", "must be an https link")]
StatusClass = Annotated[str, _Form(r"[2-5]xx", "must be a status such as 400, or a class such as '4xx'")]
Text = Annotated[str, Field(min_length=1, max_length=4000)]
Template = Annotated[str, Field(min_length=1, max_length=1000)]

PathText = Annotated[
    str,
    _compiles(Path.compile),
    WithJsonSchema({"type": "string", "pattern": f"^(?:{PATH_FORM})$", "maxLength": MAX_PATH_CHARACTERS}),
]
PatternText = Annotated[
    str,
    _compiles(Pattern.compile),
    WithJsonSchema({"type": "string", "pattern": "[^*]", "maxLength": MAX_PATTERN_CHARACTERS}),
]
Scalar = Annotated[str, Field(min_length=1, max_length=200)] | int | bool
StatusNumber = Annotated[int, Field(ge=200, le=599)]

Paths = Annotated[
    tuple[PathText, ...], BeforeValidator(listed, json_schema_input_type=PathText | list[PathText])
]
Patterns = Annotated[
    tuple[PatternText, ...], BeforeValidator(listed, json_schema_input_type=PatternText | list[PatternText])
]
Scalars = Annotated[tuple[Scalar, ...], BeforeValidator(listed, json_schema_input_type=Scalar | list[Scalar])]
Statuses = Annotated[
    tuple[StatusNumber | StatusClass, ...],
    BeforeValidator(
        listed, json_schema_input_type=StatusNumber | StatusClass | list[StatusNumber | StatusClass]
    ),
]
StatusNumbers = Annotated[
    tuple[StatusNumber, ...],
    BeforeValidator(listed, json_schema_input_type=StatusNumber | list[StatusNumber]),
]
Texts = Annotated[tuple[Text, ...], BeforeValidator(listed, json_schema_input_type=Text | list[Text])]
Seconds = Annotated[int, Field(gt=0, le=TEN_YEARS_SECONDS)]
