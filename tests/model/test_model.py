from __future__ import annotations

import os
import pytest
from hypothesis import HealthCheck, settings, seed
from hypothesis.stateful import run_state_machine_as_test

from sandbox.config import SandboxConfig
from tests.model.machine import Model
from tests.model.world import Stage
from tests.model.provider import Fate
import collections

CONFIGS = {"strict": SandboxConfig(), "grace": SandboxConfig(grace_seconds=60.0), "norev": SandboxConfig(family_revocation=False)}

@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.timeout(3000)
def test_x(stage: Stage, name) -> None:
    stats = collections.Counter()
    class M(Model):
        def teardown(self):
            stats["examples"]+=1
            for c in self.world.server.calls:
                stats[c.fate.name]+=1
            stats.update(s.status for _, s in self.judge._sights())
            stats["cands"]+=sum(len(s.candidates) for _, s in self.judge._sights())
            stats["tainted"]+=len(self.judge._tainted)
            super().teardown()
    M.stage = stage; M.config = CONFIGS[name]
    M.excused = frozenset(os.environ.get("EXCUSED","").split(","))
    try:
        run_state_machine_as_test(
            seed(int(os.environ.get("SEED","1")))(M),
            settings=settings(
                max_examples=int(os.environ.get("N","30")), stateful_step_count=int(os.environ.get("STEPS", "30")), deadline=None, database=None,
                suppress_health_check=list(HealthCheck),
                phases=None or settings.default.phases,
            ),
        )
    finally:
        print(dict(stats))
