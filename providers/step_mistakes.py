"""Mistakes in the steps that follow a good answer, that no single value shows.

A step trades the access token of the answer before it: one that does not carry it asks for somebody, not for this
account. What its request sets itself, where it goes above all, no definition can set beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from providers.credentials import ACCESS_TOKEN
from providers.placement import used_names
from providers.problems import Location
from providers.request_contradictions import Finding, header_mistakes, json_mistakes
from providers.spec import ProviderSpec
from providers.spec_requests import Step

MAX_STEPS: Final = 3
"""Each step is a request with a time limit of its own, within the one claim of its account."""


def step_mistakes(spec: ProviderSpec) -> Iterator[Finding]:
    """Yield every mistake in the steps of ``spec``: where it stands, and the reason in plain words."""
    if len(spec.steps) > MAX_STEPS:
        yield ("steps", MAX_STEPS), f"is one too many: at most {MAX_STEPS} steps follow an answer"
    for index, step in enumerate(spec.steps):
        for location, reason in header_mistakes("steps", step.headers, None):
            yield ("steps", index, *location[1:]), reason
        for key, reason in _request(spec, step):
            yield ("steps", index, *key), reason


def _request(spec: ProviderSpec, step: Step) -> Iterator[tuple[Location, str]]:
    if step.method == "GET" and step.body == "json":
        yield ("body",), "has no meaning for a GET request, whose parameters are in its query"
    if step.body == "none" and step.parameters:
        yield ("parameters",), "have no place, because body is 'none'"
    if step.body == "json":
        yield from json_mistakes({name: ("parameters", name) for name in step.parameters})
    if ACCESS_TOKEN not in used_names(spec, [*step.parameters.values(), *step.headers.values()]):
        yield (), "carries the {access_token} of the answer before it nowhere: it would ask for nobody"
