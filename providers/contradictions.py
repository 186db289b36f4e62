"""What contradicts what in a definition: mistakes that no single value shows.

:func:`contradictions` reports all of them; a definition without any can be compiled and asked.
"""

from __future__ import annotations

from collections.abc import Iterator

from providers.call_mistakes import call_mistakes
from providers.connect_mistakes import connect_mistakes
from providers.lifetime_contradictions import lifetime_mistakes
from providers.problems import Location
from providers.request_contradictions import request_mistakes
from providers.rule_mistakes import rule_mistakes
from providers.size_mistakes import size_mistakes
from providers.spec import ProviderSpec
from providers.step_mistakes import step_mistakes
from providers.template_contradictions import template_mistakes

Finding = tuple[Location, str]


def contradictions(spec: ProviderSpec, *, allow_http: bool) -> list[Finding]:
    """Return every contradiction in ``spec``: where it stands, and the reason in plain words."""
    if too_large := list(size_mistakes(spec)):
        # What is compared with each other below takes time that grows faster than the definition.
        return too_large
    return [
        *template_mistakes(spec, allow_http=allow_http),
        *request_mistakes(spec),
        *rule_mistakes(spec.errors),
        *lifetime_mistakes(spec),
        *_rate(spec),
        *call_mistakes(spec),
        *step_mistakes(spec),
        *connect_mistakes(spec),
    ]


def _rate(spec: ProviderSpec) -> Iterator[Finding]:
    if spec.rate.burst is not None and spec.rate.requests_per_second is None:
        yield ("rate", "burst"), "has no meaning without requests_per_second"
    if spec.rate.remaining_header is not None and spec.rate.reset_header is None:
        yield (
            ("rate", "remaining_header"),
            "has no meaning without reset_header, which says how long to pause",
        )
    if "reset_format" in spec.rate.model_fields_set and spec.rate.reset_header is None:
        yield ("rate", "reset_format"), "has no meaning without reset_header"
