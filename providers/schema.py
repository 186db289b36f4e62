"""The JSON Schema of the definition language, for editors and other tools.

``python -m providers.schema`` writes it; a test fails when the published file is not what the models say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from providers.spec import ProviderSpec

SCHEMA_FILE: Final = Path(__file__).parent / "schema.json"
DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
IDENTIFIER: Final = "urn:tokenfleet:provider-definition"
TITLE: Final = "Tokenfleet provider definition"


def schema() -> dict[str, Any]:
    """Return the schema of a definition; a TOML date counts as text of format ``date``."""
    document: dict[str, Any] = _described(ProviderSpec.model_json_schema())
    return {"$schema": DIALECT, "$id": IDENTIFIER, **document, "title": TITLE}


def schema_text() -> str:
    """Return the schema as it is published."""
    return json.dumps(schema(), indent=2) + "\n"


def _described(part: Any) -> Any:
    """Return ``part`` with descriptions as editors show them: one paragraph of Markdown."""
    if isinstance(part, list):
        return [_described(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    return {
        key: " ".join(inner.replace("``", "`").split())
        if key == "description" and isinstance(inner, str)
        else _described(inner)
        for key, inner in part.items()
    }


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), "utf-8")
