from sandbox.config import SandboxConfig
from tests.model.judge import Judge
from sqlalchemy import text
def test_d(stage):
  for i in range(3):
    w = stage.new_world(SandboxConfig())
    print([p.open for p in w.processes])
    w.tick(); print(w.desk.jobs)
    p = w.processes[0]
    p.take(w.desk.jobs[-1]); print(p.run()); print(len(w.server.waiting()))
    for c in w.server.waiting(): w.server.deliver(c)
    print(p.run())
    Judge(w).look()
    print(w.errors)
    w.close()
