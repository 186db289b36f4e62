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


def schema() -> dict[str, Any]:
    """Return the schema of a definition; a TOML date counts as text of format ``date``."""
    return {"$schema": DIALECT, **ProviderSpec.model_json_schema()}


def schema_text() -> str:
    """Return the schema as it is published."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), "utf-8")
