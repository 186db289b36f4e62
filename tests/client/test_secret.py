"""A Secret never shows its value, whatever prints it."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import pprint
import traceback
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet_client.secret import PLACEHOLDER, Secret

PLANTED = "planted-example-value"


@dataclass(frozen=True, slots=True)
class Holder:
    """Something that carries a secret, as a token set does."""

    name: str
    token: Secret


def test_revealing_returns_the_value() -> None:
    assert Secret(PLANTED).reveal() == PLANTED


def test_every_way_of_printing_shows_the_placeholder() -> None:
    secret = Secret(PLANTED)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r}",
        f"{secret!s:>40}",
        f"{secret:>40}",
        "%s %r" % (secret, secret),  # noqa: UP031 - the old formatting is what is tested
        "{} {!r}".format(*[secret, secret]),
        repr([secret]),
        repr({"token": secret}),
        repr(Holder("example", secret)),
        pprint.pformat({"nested": [secret, Holder("example", secret)]}),
    ]
    for text in shown:
        assert PLACEHOLDER in text
        assert PLANTED not in text


def test_a_traceback_that_passes_secrets_shows_none() -> None:
    def fail(token: Secret) -> None:
        raise ValueError("cannot use", token)

    with pytest.raises(ValueError, match="cannot use") as failure:
        fail(Secret(PLANTED))
    report = traceback.TracebackException.from_exception(failure.value, capture_locals=True)
    text = "".join(report.format()).replace(f"PLANTED = {PLANTED!r}", "")
    assert PLACEHOLDER in text
    assert PLANTED not in text


def test_the_standard_log_shows_the_placeholder(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("example").warning(
        "token %s of %r", Secret(PLANTED), Holder("example", Secret(PLANTED))
    )
    assert PLACEHOLDER in caplog.text
    assert PLANTED not in caplog.text


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_never_pickled(protocol: int) -> None:
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(Holder("example", Secret(PLANTED)), protocol=protocol)


def test_a_secret_is_never_copied_by_the_copy_module() -> None:
    with pytest.raises(TypeError, match="never pickled"):
        copy.deepcopy(Holder("example", Secret(PLANTED)))


def test_a_secret_does_not_become_json() -> None:
    with pytest.raises(TypeError):
        json.dumps({"token": Secret(PLANTED)})


def test_a_secret_has_no_dictionary_to_look_into() -> None:
    assert not hasattr(Secret(PLANTED), "__dict__")


@given(left=st.text(), right=st.text())
def test_secrets_are_equal_exactly_when_their_values_are(left: str, right: str) -> None:
    assert (Secret(left) == Secret(right)) == (left == right)
    if left == right:
        assert hash(Secret(left)) == hash(Secret(right))


def test_a_secret_is_not_equal_to_its_own_text() -> None:
    assert Secret(PLANTED) != PLANTED


def test_an_empty_secret_is_false() -> None:
    assert not Secret("")
    assert Secret(PLANTED)
