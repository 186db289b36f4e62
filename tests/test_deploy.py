"""What deploy/ and the Procfile start exists, and stops slowly enough to lose nothing.

No container engine is needed: files are read, commands are looked up in the command line itself, the health
check runs against a server of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from configparser import RawConfigParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
import pytest
import yaml

from cli.fleet import DRAIN_SECONDS
from cli.main import root
from scheduler.process import LONGEST_STOP_SECONDS
from tokenfleet import settings
from tokenfleet.settings import Tunables
from workers.engine import longest_stop_seconds
from workers.webhook_engine import longest_stop_seconds as webhooks_stop_seconds

ROOT: Final = Path(__file__).resolve().parent.parent
DEPLOY: Final = ROOT / "deploy"
UNITS: Final = sorted((DEPLOY / "systemd").glob("*.service"))
PROGRAM: Final = "/opt/tokenfleet/bin/tokenfleet"


def procfile() -> dict[str, list[str]]:
    """The arguments of ``tokenfleet`` in each line of the Procfile."""
    lines = (line.partition(":") for line in (ROOT / "Procfile").read_text(encoding="utf-8").splitlines())
    commands = {name: shlex.split(command) for name, _, command in lines}
    assert all(words[0] == "tokenfleet" for words in commands.values())
    return {name: words[1:] for name, words in commands.items()}


def unit(path: Path) -> RawConfigParser:
    """The unit file at ``path``; of a repeated key only the last value is kept."""
    parser = RawConfigParser(strict=False, comment_prefixes=("#",), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep case
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


def unit_commands() -> dict[str, list[str]]:
    """The arguments of ``tokenfleet`` in each unit."""
    commands = {path.name: shlex.split(unit(path)["Service"]["ExecStart"]) for path in UNITS}
    assert all(words[0] == PROGRAM for words in commands.values())
    return {name: words[1:] for name, words in commands.items()}


def compose() -> dict[str, Any]:
    """The compose file, with its anchors and merges resolved."""
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def our_services() -> dict[str, dict[str, Any]]:
    """The services of the compose file that run our image."""
    return {name: each for name, each in compose()["services"].items() if each["image"] == "tokenfleet"}


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and arguments of the Dockerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def started() -> list[tuple[str, list[str]]]:
    """Every command that some file starts, with the name of the place."""
    image = json.loads(next(rest for word, rest in dockerfile() if word == "CMD"))
    return [
        *((f"Procfile {name}", words) for name, words in procfile().items()),
        *unit_commands().items(),
        *((f"compose {name}", each["command"]) for name, each in our_services().items()),
        ("Dockerfile CMD", [word for word in image if word != "--help"]),
    ]


def find(words: list[str]) -> None:
    """Look ``words`` up in the command line and let it parse the rest; nothing is run."""
    command: click.Command = root
    context = click.Context(command, info_name="tokenfleet")
    rest = list(words)
    while rest and isinstance(command, click.Group):
        name = rest.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"tokenfleet has no command {name!r} in {words}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    if words:
        assert not isinstance(command, click.Group), f"{words} names a group of commands"
        command.make_context(context.info_name, rest, parent=context.parent)


@pytest.mark.parametrize("words", [pytest.param(words, id=place) for place, words in started()])
def test_every_command_that_is_started_is_one_of_the_command_line(words: list[str]) -> None:
    find(words)


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="no command 'nonsense'"):
        find(["nonsense"])
    with pytest.raises(click.UsageError):
        find(["worker", "--nonsense"])


def test_procfile_units_and_compose_file_start_the_same_processes() -> None:
    wanted = sorted(set(map(tuple, procfile().values())))
    services = {name: each for name, each in our_services().items() if "profiles" not in each}

    assert sorted(set(map(tuple, unit_commands().values()))) == wanted
    assert sorted({tuple(each["command"]) for each in services.values()}) == wanted


def test_every_setting_that_a_file_names_exists() -> None:
    source = Path(settings.__file__).read_text(encoding="utf-8")
    known = set(re.findall(r"TOKENFLEET_[A-Z_]+[A-Z]", source))
    known |= {f"{settings.PREFIX}{name.upper()}" for name in Tunables.model_fields}
    known |= {"TOKENFLEET_ACCESS_KEYS", "TOKENFLEET_REFRESH_KEYS"}

    named = {
        (path.name, name)
        for path in (
            ROOT / "Procfile",
            *(path for path in DEPLOY.rglob("*") if path.suffix not in {".pyc", ""}),
        )
        if path.is_file()
        for name in re.findall(r"TOKENFLEET_[A-Z_]+[A-Z]", path.read_text(encoding="utf-8"))
    }

    assert {place for place in named if place[1] not in known} == set()


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_each_unit_gives_up_what_it_does_not_need(path: Path) -> None:
    service = unit(path)["Service"]

    assert service["User"] == "tokenfleet"
    assert service["EnvironmentFile"] == "/etc/tokenfleet/tokenfleet.env"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["LimitCORE"] == "0", "a core dump writes tokens to disk"


def test_workers_of_one_machine_share_the_journals_that_outlive_them_and_have_ports_of_their_own() -> None:
    text = (DEPLOY / "systemd" / "tokenfleet-worker@.service").read_text(encoding="utf-8")
    workers = [each for each in our_services().values() if "refresh" in each["command"]]

    assert "StateDirectory=tokenfleet\n" in text
    assert "Environment=TOKENFLEET_JOURNAL_DIR=%S/tokenfleet/journal\n" in text
    assert "Environment=TOKENFLEET_METRICS_PORT=946%i\n" in text
    assert [(each["volumes"], each["deploy"]["replicas"]) for each in workers] == [
        (["journal:/var/lib/tokenfleet"], 2)
    ]
    assert "journal" in compose()["volumes"]


def test_every_process_is_given_the_time_that_its_stop_may_take() -> None:
    units = {path.name: unit(path)["Service"] for path in UNITS}
    services = our_services()
    needed = {
        ("tokenfleet-worker@.service", "worker"): longest_stop_seconds(Tunables()),
        ("tokenfleet-webhooks@.service", "webhooks"): webhooks_stop_seconds(Tunables()),
        ("tokenfleet-scheduler.service", "scheduler"): LONGEST_STOP_SECONDS,
    }

    for (name, service), seconds in needed.items():
        assert seconds < int(units[name]["TimeoutStopSec"]) <= 2 * seconds
        assert (units[name]["KillSignal"], units[name]["KillMode"]) == ("SIGTERM", "mixed")
        assert seconds < int(services[service]["stop_grace_period"].removesuffix("s")) <= 2 * seconds


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    # Only the program is exchanged for one that exists here; systemd-analyze looks for it.
    for path in (DEPLOY / "systemd").iterdir():
        text = path.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true")
        (tmp_path / path.name).write_text(text, encoding="utf-8")
    names = [str(path).replace("@.service", "@1.service") for path in sorted(tmp_path.iterdir())]

    verify = ["systemd-analyze", "verify", "--man=no", *names]
    shown = subprocess.run(verify, check=False, capture_output=True, text=True)

    ours = [line for line in shown.stderr.splitlines() if "tokenfleet" in line]
    assert (shown.returncode, ours) == (0, [])


def test_the_example_of_settings_holds_no_secret_and_nothing_that_processes_cannot_share() -> None:
    lines = (DEPLOY / "tokenfleet.env.example").read_text(encoding="utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    assert all(urlsplit(value).password is None for value in values.values())
    assert {"TOKENFLEET_HOME", "TOKENFLEET_JOURNAL_DIR", "TOKENFLEET_METRICS_PORT"}.isdisjoint(values)
    assert not any(name.endswith("_KEYS") for name in values)


def test_the_composed_fleet_waits_for_its_servers_and_for_the_migration() -> None:
    services = compose()["services"]

    for name in ("scheduler", "worker", "webhooks"):
        assert {needed: each["condition"] for needed, each in services[name]["depends_on"].items()} == {
            "postgres": "service_healthy",
            "valkey": "service_healthy",
            "release": "service_completed_successfully",
        }
    assert all("healthcheck" in services[name] for name in ("postgres", "valkey"))
    assert services["release"]["restart"] == "no"


def test_the_composed_fleet_opens_no_port_and_keeps_its_secrets_in_files_git_ignores() -> None:
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()

    assert not any("ports" in each for each in compose()["services"].values())
    assert {each["file"] for each in compose()["secrets"].values()} == {"./secrets/keys.json"}
    assert {"/deploy/secrets/", "/deploy/tokenfleet.env", ".env"} <= set(ignored)


def test_the_image_runs_as_nobody_special_and_starts_without_a_shell() -> None:
    last = dict(dockerfile())

    assert json.loads(last["ENTRYPOINT"]) == ["tokenfleet"]
    assert isinstance(json.loads(last["CMD"]), list)
    assert last["USER"] == "tokenfleet"
    assert last["STOPSIGNAL"] == "SIGTERM"


def test_everything_that_the_image_copies_is_let_into_the_build() -> None:
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [
        shlex.split(rest)[:-1] for word, rest in dockerfile() if word == "COPY" and "--from" not in rest
    ]

    names = {name for group in copied for name in group}
    assert names == {line[1:] for line in allowed if line.startswith("!")}
    assert all((ROOT / name).exists() for name in names)


class Health(BaseHTTPRequestHandler):
    """Answers /healthz with the status that the server was given."""

    def do_GET(self) -> None:
        assert isinstance(self.server, HealthServer)
        self.send_response(self.server.status if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


class HealthServer(ThreadingHTTPServer):
    """A process's own /healthz, on a port of 127.0.0.1."""

    status = 200


@pytest.fixture
def health() -> Iterator[HealthServer]:
    """A running server whose ``status`` a test may set."""
    with HealthServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "alive"), [(200, True), (207, True), (503, False)])
def test_the_image_is_healthy_while_its_process_says_so(
    health: HealthServer, status: int, alive: bool
) -> None:
    check = next(rest for word, rest in dockerfile() if word == "HEALTHCHECK")
    program, *arguments = json.loads(check.partition(" CMD ")[2])
    health.status = status
    environ = os.environ | {"TOKENFLEET_METRICS_PORT": str(health.server_port)}

    shown = subprocess.run([sys.executable, *arguments], env=environ, check=False, capture_output=True)

    assert program == "python"
    assert (shown.returncode == 0) == alive


def test_a_fleet_on_one_machine_waits_as_long_as_a_worker_may_take_to_stop() -> None:
    assert longest_stop_seconds(Tunables()) < DRAIN_SECONDS
