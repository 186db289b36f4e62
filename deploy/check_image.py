"""Judge an environment made from our wheels, while the image is built: ``check_image.py application|client``.

Promise: the image is not finished when one of our generic top-level names (cli, store, ...) belongs to
another distribution as well, when a file that is not Python was left out of the wheel, or when the client
brings the application's libraries with it. It looks at installed wheels: an editable install hides all that.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import files, packages_distributions
from importlib.util import find_spec
from typing import Final

APPLICATION: Final = (
    "cli",
    "conformance",
    "embedded",
    "providers",
    "sandbox",
    "scheduler",
    "store",
    "tokenfleet",
    "workers",
)
CLIENT: Final = "tokenfleet_client"
DATA: Final = (
    "providers/schema.json",
    "providers/catalog/",
    "store/leases.lua",
    "store/migrations/versions/",
)
NOT_FOR_CLIENTS: Final = ("aiohttp", "celery", "httpx", "kombu", "redis", "sqlalchemy", *APPLICATION)


def application_problems() -> list[str]:
    """Return one sentence for each thing that is wrong with an environment of the application."""
    owners = packages_distributions()
    expected = dict.fromkeys(APPLICATION, "tokenfleet") | {CLIENT: "tokenfleet-client"}
    problems = [
        f"the package {name} should belong to {owner} alone, and belongs to {owners.get(name, 'nobody')}"
        for name, owner in expected.items()
        if set(owners.get(name, ())) != {owner}
    ]
    ours = [file.as_posix() for file in files("tokenfleet") or ()]
    problems += [
        f"{data} is not in the wheel" for data in DATA if not any(name.startswith(data) for name in ours)
    ]
    shipped = {name.partition("/")[0] for name in ours if name.endswith(".py")}
    problems += [
        f"{name} is in the wheel and should not be" for name in sorted(shipped.difference(APPLICATION))
    ]
    return problems + command_problems()


def command_problems() -> list[str]:
    """Return the commands that cannot be imported here; they are imported only when they are called."""
    import click

    root: click.Group = importlib.import_module("cli.main").root
    problems = []
    for name in root.list_commands(click.Context(root)):
        try:
            root.get_command(click.Context(root), name)
        except ImportError as error:
            problems.append(f"the command {name} cannot be imported: {error}")
    return problems


def client_problems() -> list[str]:
    """Return one sentence for each thing that is wrong with an environment of the client alone."""
    importlib.import_module(CLIENT)
    return [f"the client brings {name} with it" for name in NOT_FOR_CLIENTS if find_spec(name) is not None]


def main(arguments: list[str]) -> int:
    """Print the problems and return the exit code."""
    checks = {"application": application_problems, "client": client_problems}
    if len(arguments) != 1 or arguments[0] not in checks:
        print("usage: check_image.py application|client", file=sys.stderr)
        return 2
    problems = checks[arguments[0]]()
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
