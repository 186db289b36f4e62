from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from embedded.supervisor import ChildState, Supervisor
from tokenfleet.errors import UserError

StartScript = Callable[..., subprocess.Popen[str]]
Eventually = Callable[[Callable[[], bool]], None]

WAIT_FOR_EVER = "import signal; print('begun', flush=True); signal.pause()"
IGNORE_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT_FOR_EVER}"
FINISH_ON_SIGTERM = """
import signal, sys
def finish(*_):
    print('finished', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
print('begun', flush=True)
while True:
    signal.pause()
"""


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(tmp_path / "logs", grace_seconds=10) as supervisor:
        yield supervisor


def only(supervisor: Supervisor) -> ChildState:
    (state,) = supervisor.states()
    return state


def pid_of(supervisor: Supervisor) -> int:
    pid = only(supervisor).pid
    assert pid is not None
    return pid


def has_written(supervisor: Supervisor, text: str) -> Callable[[], bool]:
    return lambda: text in only(supervisor).log_file.read_text()


def test_a_child_runs_with_its_own_environment_directory_and_log(
    supervisor: Supervisor, tmp_path: Path, eventually: Eventually
) -> None:
    text = f"import os; print(sorted(os.environ), os.getcwd()); {WAIT_FOR_EVER}"
    supervisor.start("child", python(text), environ={"LC_CTYPE": "C.UTF-8"}, cwd=tmp_path)

    eventually(has_written(supervisor, "begun"))
    assert only(supervisor).log_file == tmp_path / "logs" / "child.log"
    assert f"['LC_CTYPE'] {tmp_path}" in only(supervisor).log_file.read_text()


def test_a_killed_child_is_started_again_and_counted(supervisor: Supervisor, eventually: Eventually) -> None:
    supervisor.start("child", python(WAIT_FOR_EVER), environ={})
    first = pid_of(supervisor)

    os.kill(first, signal.SIGKILL)

    eventually(lambda: only(supervisor).restarts == 1 and only(supervisor).pid is not None)
    assert pid_of(supervisor) != first
    assert only(supervisor).last_end == "ended by SIGKILL"
    supervisor.check()


def test_a_child_that_cannot_begin_is_reported_with_its_last_words(
    supervisor: Supervisor, eventually: Eventually
) -> None:
    supervisor.start("child", python("raise SystemExit('no such thing')"), environ={})
    eventually(lambda: only(supervisor).pid is None)

    with pytest.raises(
        UserError, match=r"^child ended at once \(exit code 1\); its last words .*\nno such thing$"
    ):
        supervisor.check()
    assert only(supervisor).restarts == 0


def test_a_program_that_does_not_exist_is_said_in_one_sentence(supervisor: Supervisor) -> None:
    with pytest.raises(UserError, match="child could not be started: /no/such/program: No such file"):
        supervisor.start("child", ["/no/such/program"], environ={})


def test_two_children_may_not_have_one_name(supervisor: Supervisor) -> None:
    supervisor.start("child", python(WAIT_FOR_EVER), environ={})

    with pytest.raises(ValueError, match="child"):
        supervisor.start("child", python(WAIT_FOR_EVER), environ={})


def test_the_log_of_the_start_before_is_kept_beside(tmp_path: Path, eventually: Eventually) -> None:
    for text in ("first", "second"):
        with Supervisor(tmp_path) as supervisor:
            supervisor.start("child", python(f"print('{text}'); {WAIT_FOR_EVER}"), environ={})
            eventually(has_written(supervisor, "begun"))

    assert "second" in (tmp_path / "child.log").read_text()
    assert "first" in (tmp_path / "child.log.1").read_text()


def test_children_are_asked_to_finish_first(supervisor: Supervisor, eventually: Eventually) -> None:
    supervisor.start("child", python(FINISH_ON_SIGTERM), environ={})
    eventually(has_written(supervisor, "begun"))
    log = only(supervisor).log_file

    supervisor.stop()

    assert "finished" in log.read_text()
    assert supervisor.states() == ()


def test_a_child_that_ignores_the_question_is_killed_after_the_grace(
    tmp_path: Path, eventually: Eventually
) -> None:
    with Supervisor(tmp_path, grace_seconds=0.1) as supervisor:
        supervisor.start("child", python(IGNORE_SIGTERM), environ={})
        eventually(has_written(supervisor, "begun"))
        pid = pid_of(supervisor)

    assert not psutil.pid_exists(pid)


def test_what_a_child_has_started_ends_with_it(supervisor: Supervisor, eventually: Eventually) -> None:
    text = "import subprocess; print('begun', subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    supervisor.start(
        "child",
        python(text.replace("input()", "import signal; signal.pause()")),
        environ={"PATH": os.defpath},
    )
    eventually(has_written(supervisor, "begun"))
    grandchild = psutil.Process(int(only(supervisor).log_file.read_text().split()[-1]))

    supervisor.stop()

    eventually(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)


def test_ctrl_c_in_a_terminal_reaches_the_owner_only(supervisor: Supervisor) -> None:
    supervisor.start("child", python(WAIT_FOR_EVER), environ={})

    assert os.getsid(pid_of(supervisor)) == pid_of(supervisor)
    assert os.getpgid(pid_of(supervisor)) != os.getpgid(0)


def test_stopping_in_a_pause_between_runs_returns_at_once(
    supervisor: Supervisor, eventually: Eventually
) -> None:
    supervisor.start("child", python(WAIT_FOR_EVER), environ={})
    os.kill(pid_of(supervisor), signal.SIGKILL)
    eventually(lambda: only(supervisor).pid is None)

    supervisor.stop()

    assert supervisor.states() == ()


OWNER = """
import sys, threading
from pathlib import Path
from embedded.supervisor import Supervisor
supervisor = Supervisor(Path(sys.argv[1]))
starter = threading.Thread(
    target=lambda: supervisor.start("child", [sys.executable, "-c", sys.argv[2]], environ={})
)
starter.start()
starter.join()
print(supervisor.states()[0].pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux'")
def test_children_outlive_the_thread_that_started_them_but_not_their_owner(
    start_script: StartScript, tmp_path: Path, eventually: Eventually
) -> None:
    owner = start_script(OWNER, tmp_path, IGNORE_SIGTERM)
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    eventually(lambda: "begun" in (tmp_path / "child.log").read_text())
    assert child.is_running()

    owner.kill()

    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
