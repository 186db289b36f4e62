"""The explanation of a definition: nothing that it says is left out, and what nobody has confirmed is marked."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from providers import load_registry
from providers.describe import describe, lines
from providers.explanation.setup import needed_variables
from providers.explanation.unconfirmed import Topic, topics_of
from providers.registry import CATALOG
from providers.spec import ProviderSpec
from tests.providers.definitions import provider, toml

Place = tuple[str | int, ...]
Leaf = tuple[Place, Any]

EVERY_KEY: Final = Path(__file__).with_name("every_key.toml").read_text("utf-8")
"""A definition that sets every key of the language; it contradicts itself, which no explanation minds."""

ELSEWHERE: Final = frozenset({("lifetimes", "access_never_expires")})
"""Keys that contradict too much of the rest to be set beside it."""


def leaves(document: Any, place: Place = ()) -> Iterator[Leaf]:
    """Yield everything that ``document`` sets: scalars, and lists of scalars whole."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from leaves(value, (*place, key))
    elif isinstance(document, list) and any(isinstance(value, dict) for value in document):
        for position, value in enumerate(document):
            yield from leaves(value, (*place, position))
    else:
        yield place, document


def changed(document: Any, place: Place, value: Any) -> Any:
    """Return a copy of ``document`` with another ``value`` at ``place``."""
    result = copy.deepcopy(document)
    at = result
    for step in place[:-1]:
        at = at[step]
    at[place[-1]] = value
    return result


def others(value: Any) -> list[Any]:
    """Return values to try in place of ``value``, where its set is not a closed one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1, value - 1]
    if isinstance(value, date):
        return [value + timedelta(days=1)]
    if isinstance(value, list):
        return [[*value[:-1], other] for other in others(value[-1])] if value else []
    return [f"{value}x", "zz"]


def explained(document: Any) -> list[str] | None:
    """Return the explanation of ``document``, or None if the language does not permit it."""
    try:
        return lines(ProviderSpec.model_validate(document), "example.toml")
    except ValidationError:
        return None


def words(document: Any) -> list[str]:
    """Return the words of the closed sets that ``document`` does not keep to."""
    try:
        ProviderSpec.model_validate(document)
    except ValidationError as error:
        told = [each["ctx"]["expected"] for each in error.errors() if each["type"] == "literal_error"]
        return re.findall(r"'([^']*)'", " ".join(told))
    return []


def retold(document: Any, place: Place, value: Any) -> list[list[str]]:
    """Return the explanations of ``document`` with other values at ``place``: every other word of a closed set."""
    tried = others(value)
    tried += [word for word in words(changed(document, place, tried[-1])) if word != value] if tried else []
    return [text for other in tried if (text := explained(changed(document, place, other))) is not None]


def keys_of(model: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every key that ``model`` knows; those of free tables stand at ``*``."""
    for name, field in model.model_fields.items():
        here = (*place, name)
        inner = list(models_in(field.annotation))
        free = get_origin(field.annotation) is dict
        for one in inner:
            yield from keys_of(one, (*here, "*") if free else here)
        if not inner:
            yield here


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models within an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for argument in get_args(annotation):
            if get_origin(argument) is Annotated or not isinstance(argument, str):
                yield from models_in(argument)


def test_the_example_sets_every_key_of_the_language() -> None:
    document = tomllib.loads(EVERY_KEY)
    ProviderSpec.model_validate(document)
    told = {tuple(step for step in place if isinstance(step, str)) for place, _ in leaves(document)}

    def is_told(key: tuple[str, ...]) -> bool:
        return any(
            len(place) >= len(key) and all(k in ("*", p) for k, p in zip(key, place, strict=False))
            for place in told
        )

    assert {key for key in keys_of(ProviderSpec) if not is_told(key)} == ELSEWHERE


def test_changing_any_key_changes_the_explanation_and_no_two_words_of_a_key_are_told_alike() -> None:
    document = tomllib.loads(EVERY_KEY)
    before = explained(document)
    assert before is not None
    silent = []
    for place, value in leaves(document):
        told = retold(document, place, value)
        assert told, f"no other value is permitted at {place}"
        if len({tuple(text) for text in (before, *told)}) <= len(told):
            silent.append(place)
    assert silent == []


def test_every_key_that_a_definition_of_the_catalogue_sets_is_told() -> None:
    silent = []
    seen: set[Place] = set()
    for file in sorted(CATALOG.glob("*.toml")):
        document = tomllib.loads(file.read_text("utf-8"))
        # Each key in one definition: all of them would take seconds and tell no more.
        new = {
            tuple(step for step in place if isinstance(step, str)): (place, value)
            for place, value in leaves(document)
            if value != []
        }
        before = explained(document) if new.keys() - seen else None
        silent += [
            (file.stem, place)
            for key, (place, value) in new.items()
            if key not in seen and before in retold(document, place, value)
        ]
        seen |= new.keys()
    assert silent == []


def told(extra: str = "", **parts: str) -> str:
    """Return the explanation of a small definition, one statement a line."""
    return "\n".join(describe(provider(extra, allow_http=False, **parts)))


def test_a_secret_that_a_hash_covers_is_not_said_to_be_sent() -> None:
    hashed = '[refresh.parameters]\nhash = "{hash}"\n[computed.hash]\nkind = "sha256"\nof = "{client_secret}"'
    for authentication in ("client_secret_post", "client_secret_basic", "none"):
        text = told(hashed, client=f'authentication = "{authentication}"')
        assert "in place of the secret, what is computed from it or placed below" in text
        assert "client id and secret" not in text
        assert "public client" not in text


GRANTS: Final[Mapping[str, tuple[str, str, str]]] = {
    "refresh_token": (
        "",
        "Import line: provider, external_id and refresh_token.",
        "with client id and secret among the parameters (client_secret_post); it presents the refresh token.",
    ),
    "client_credentials": (
        "",
        "Import line: provider and external_id. No token is needed",
        "it presents nothing but the client itself (client credentials).",
    ),
    "jwt_bearer": (
        '[assertion]\nalgorithm = "ES256"\naudience = "https://example.com"',
        "Registration: tokenfleet apps set example --client-id … with the signing key in place of a client secret",
        "it presents an assertion that the app signs",
    ),
    "token_exchange": (
        "",
        "refresh_token. In that place stands the token that is exchanged: it is kept, and never replaced.",
        "it presents a token of another kind, which is kept",
    ),
    "access_token": (
        "",
        "access_token. It must be alive: it is what a renewal presents.",
        "it presents the access token itself, while it lives.",
    ),
    "none": (
        "",
        "access_token. It is the key itself: readers get it as it is, and it is never renewed.",
        "Refresh: none; the fleet presents nothing, because nothing is ever renewed.",
    ),
}


@pytest.mark.parametrize("grant", GRANTS)
def test_each_grant_says_what_an_account_brings_and_what_is_presented(grant: str) -> None:
    extra, brings, presents = GRANTS[grant]
    endpoint = "" if grant == "none" else 'endpoint = "https://auth.example.com/token"'
    document = tomllib.loads(
        toml(extra, refresh=f'{endpoint}\ngrant = "{grant}"', rotation='policy = "never"')
    )
    text = "\n".join(explained(document) or ())
    assert brings in text
    assert presents in text


def test_a_key_that_is_only_probed_says_who_decides_that_it_is_dead() -> None:
    document = tomllib.loads(
        toml(
            '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = 200',
            refresh='grant = "none"',
            rotation='policy = "never"',
        )
    )
    text = "\n".join(explained(document) or ())
    assert "401 said 3 times in a row, about 10 minutes and then 2 hours apart, means that it is gone" in text
    assert "Error" not in text


def test_variables_without_default_are_asked_of_an_import_line_if_a_renewal_needs_them() -> None:
    text = told(
        '[variables.tenant]\ndescription = "the directory"\n'
        '[variables.region]\ndescription = "the region"\ndefault = "eu"\n'
        '[variables.base]\ndescription = "the API"\nkind = "url"\nfrom_answer = "base"',
        refresh='endpoint = "https://auth.example.com/{tenant}/{region}"',
    )
    assert "Import line: provider, external_id, refresh_token and variables.tenant." in text
    assert "Variable tenant (text): the directory; every account or its app has to say it." in text
    assert "Variable region (text): the region; eu unless told otherwise." in text


def test_what_a_request_needs_is_what_an_import_line_is_told_to_bring() -> None:
    for one in load_registry():
        assert set(needed_variables(one.spec)) >= one.required_variables(), one.name


def test_what_nobody_has_confirmed_is_marked_where_it_stands_and_told_at_the_end() -> None:
    text = told(
        '[[errors]]\noutcome = "grant_rejected"\npath = "error"\nvalue = "gone"\n'
        '[[errors]]\noutcome = "throttled"\npath = "error"\nvalue = "slow_down"\n'
        "[lifetimes]\naccess_seconds = 3600\nrefresh_idle_seconds = 86400",
    ).splitlines()
    assert not any("[not confirmed]" in line for line in text)
    document = tomllib.loads(
        toml(
            '[[errors]]\noutcome = "grant_rejected"\npath = "error"\nvalue = "gone"\n'
            '[[errors]]\noutcome = "throttled"\npath = "error"\nvalue = "slow_down"\n'
            "[lifetimes]\naccess_seconds = 3600\nrefresh_idle_seconds = 86400",
        )
    )
    document["unverified"] = ["the spelling of slow_down", "lifetimes.access_seconds: from general knowledge"]
    marked = [line for line in explained(document) or () if line.endswith("[not confirmed]")]
    assert [line.partition(":")[0] for line in marked] == [
        "Error 2xx or 4xx where error is slow_down",
        "Access token",
    ]
    assert "Not confirmed: the spelling of slow_down" in (explained(document) or ())


@pytest.mark.parametrize(
    ("statement", "topics"),
    [
        ("that every refresh returns a new refresh token", {Topic.ROTATION}),
        ("the form of the revocation request", {Topic.REVOKE}),
        ("how the revocation request authenticates the client", {Topic.REVOKE}),
        ("the lifetimes", {Topic.ACCESS_LIFE, Topic.IDLE, Topic.ABSOLUTE}),
        ("the status of invalid_client", {Topic.ERRORS}),
        ("that the replaced refresh token works for another 10 minutes", {Topic.GRACE}),
        ("rotation.grace_seconds: nobody says", {Topic.GRACE}),
        ("lifetimes: all of them", {topic for topic in Topic if topic.startswith("lifetimes")}),
        ("nothing of this is about a key", set()),
    ],
)
def test_statements_are_sorted_by_their_words_or_by_the_key_that_they_begin_with(
    statement: str, topics: set[Topic]
) -> None:
    assert topics_of(statement) == topics


def test_most_of_what_the_catalogue_doubts_is_marked_somewhere() -> None:
    statements = [statement for one in load_registry() for statement in one.spec.unverified]
    lost = [statement for statement in statements if not topics_of(statement)]
    assert len(lost) < len(statements) / 10, lost


def test_tokens_that_never_end_are_told() -> None:
    assert "Access token: lives until it is revoked" in "\n".join(
        describe(provider("[lifetimes]\naccess_never_expires = true"))
    )
