"""A fleet of three workers, a strict provider, and everything that may befall them, in any order.

In the suite the examples are the same ones every time. The long search draws others, and prints its seed::

    MODEL_PROFILE=chaos pytest tests/model/test_model.py --timeout 3600 -s
    MODEL_PROFILE=chaos MODEL_SEED=20261121 MODEL_EXAMPLES=2000 pytest tests/model/test_model.py ...
"""

from __future__ import annotations

import os
import random
import sys
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import Model
from tests.model.provider import BRANCHING, GRACE, LENIENT, STRICT, Policy
from tests.model.replaying import Teller, spelled
from tests.model.world import Stage

SUITE: Final = settings(
    stateful_step_count=30,
    deadline=None,
    database=None,
    derandomize=True,
    # How long a step takes says nothing here, and what is drawn is small.
    suppress_health_check=list(HealthCheck),
    # tests/model/replaying.py makes failures short.
    phases=(Phase.generate,),
)
CHAOS: Final = settings(SUITE, derandomize=False, stateful_step_count=50)
EXAMPLES_OF_CHAOS: Final = 500


@pytest.mark.parametrize(
    ("policy", "examples"),
    [
        pytest.param(STRICT, 20, id="strict"),
        pytest.param(GRACE, 10, id="grace"),
        pytest.param(LENIENT, 10, id="no-family-revocation"),
        pytest.param(BRANCHING, 10, id="a-successor-for-each-replay"),
    ],
)
def test_whatever_happens_no_token_is_spent_twice_and_no_successor_is_lost(
    stage: Stage, policy: Policy, examples: int
) -> None:
    machines: list[Model] = []

    class Machine(Model):
        """The model on this test's stage; the last one that is made has the story to tell."""

        def __init__(self) -> None:
            super().__init__()
            machines[:] = [self]

    Machine.stage, Machine.policy = stage, policy
    try:
        if os.environ.get("MODEL_PROFILE") == "chaos":
            number = int(os.environ.get("MODEL_SEED") or random.SystemRandom().getrandbits(32))
            examples = int(os.environ.get("MODEL_EXAMPLES") or EXAMPLES_OF_CHAOS)
            sys.stderr.write(f"MODEL_SEED={number} MODEL_EXAMPLES={examples}\n")
            search = settings(CHAOS, max_examples=examples)
            run_state_machine_as_test(seed(number)(Machine), settings=search)
        else:
            run_state_machine_as_test(Machine, settings=settings(SUITE, max_examples=examples))
    except AssertionError as error:
        [machine] = machines
        teller = Teller(stage, policy, machine.acts.spared)
        story = teller.shorten(machine.story)
        error.add_note(f"Spared: {sorted(machine.acts.spared)}. In short:\n{spelled(story)}")
        raise
