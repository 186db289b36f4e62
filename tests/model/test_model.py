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
    stats = collections.Counter(); last = []
    class M(Model):
        def __init__(self):
            super().__init__(); last.append(self)
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
                phases=[__import__("hypothesis").Phase.generate],
            ),
        )
    except BaseException as error:
        story = last[-1].story
        import time
        t0 = time.time()
        first = str(error).splitlines()[0]
        spared = last[-1].acts.spared
        from tests.model.machine import Acts, settle
        from tests.model.judge import Judge
        def run(story):
            world = stage.new_world(M.config); acts = Acts(world); judge = Judge(world, M.excused); acts.spared = spared
            try:
                judge.look()
                for name, arguments in story:
                    getattr(acts, name)(*arguments); judge.look()
                settle(world, judge)
            except AssertionError as e:
                return e
            finally:
                world.close()
            return None
        def shape(e): 
            import re
            return e is not None and re.sub("[0-9]+|ada|bob", "", str(e))[:40]
        goal = shape(run(story))
        if goal:
            changed = True
            while changed and time.time() - t0 < 150:
                changed = False
                size = max(1, len(story)//2)
                while size >= 1:
                    i = len(story) - size
                    while i >= 0:
                        cand = story[:i] + story[i+size:]
                        if shape(run(cand)) == goal:
                            story = cand; changed = True
                        i -= size
                    size //= 2
            e = run(story)
            print("MINIMAL", type(e).__name__, e)
        else: print("NOT REPRODUCED", first)
        for line in story: print("   ", line)
        raise
    finally:
        print(dict(stats))
