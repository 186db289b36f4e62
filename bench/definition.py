"""The provider definition of what the benches ask."""

from __future__ import annotations

from typing import Final

_DEFINITION: Final = """
name = "bench"
display_name = "Benchmark endpoint"
category = "other"
documentation = "https://example.com/bench"
confidence = "high"
checked = 2026-11-21

[client]
authentication = "client_secret_post"

[refresh]
endpoint = "{endpoint}"

[rotation]
policy = "always"
"""


def definition(endpoint: str) -> str:
    """Return the definition (TOML) of a provider called ``bench`` whose token endpoint is ``endpoint``."""
    return _DEFINITION.format(endpoint=endpoint)
