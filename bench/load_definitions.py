"""What definitions cost at the start of a process: 500 of them read, checked and compiled.

The definitions are the catalogue's, repeated under other names and with other endpoints, so that no cache of texts
makes them cheaper than different ones would be. Each round is a process of its own, as a start is. CPU time, the
least of all rounds: on a busy machine the others only say how busy it was.

    python bench/load_definitions.py [--definitions 500] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Final

import tomli

from providers.registry import CATALOG

BUDGET_SECONDS: Final = 0.300
STAGES: Final = ("parse TOML", "validate", "contradictions", "compile", "load_registry, all of it")


_ENDPOINT: Final = re.compile(r'endpoint = "https://[^"{]*(?=")')
"""An endpoint that no variable changes; those that one changes are compiled each time anyway."""


def copies(directory: Path, count: int) -> None:
    """Write ``count`` definitions into ``directory``."""
    files = sorted(CATALOG.glob("*.toml"))
    for number, file in zip(range(count), cycle(files), strict=False):
        text = file.read_text("utf-8")
        name = f"{file.stem[:50]}_{number}"
        text = text.replace(f'name = "{file.stem}"', f'name = "{name}"', 1)
        text = _ENDPOINT.sub(rf"\g<0>&n={number}", text)
        (directory / f"{name}.toml").write_text(text, "utf-8")


def measured(directory: Path) -> list[float]:
    """Return the CPU seconds of each stage, in this process."""
    from providers.contradictions import contradictions
    from providers.loading import read_directory
    from providers.registry import Provider, compiled
    from providers.spec import ProviderSpec

    texts = [file.read_text("utf-8") for file in sorted(directory.iterdir())]
    told: list[float] = []

    def timed(work: Callable[[], object]) -> None:
        started = time.process_time()
        work()
        told.append(time.process_time() - started)

    # The whole first, so that nothing is in a cache that a start would not have.
    timed(lambda: compiled(directory, allow_http=False))
    definitions, problems = read_directory(directory, allow_http=False)
    if problems:
        sys.exit("\n".join(map(str, problems)))
    documents = [tomli.loads(text) for text in texts]
    specs = [each.spec for each in definitions]
    timed(lambda: [tomli.loads(text) for text in texts])
    timed(lambda: [ProviderSpec.model_validate(document) for document in documents])
    timed(lambda: [contradictions(spec, allow_http=False) for spec in specs])
    timed(lambda: [Provider.compile(spec, origin="", allow_http=False) for spec in specs])
    return [*told[1:], told[0]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--definitions", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        copies(Path(folder), options.definitions)
        command = [sys.executable, __file__, "--measure", folder]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        rounds = [
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environ).stdout)
            for _ in range(options.rounds)
        ]
    least = [min(times) for times in zip(*rounds, strict=True)]
    whole = least[-1]
    print(f"{options.definitions} definitions, least CPU time of {options.rounds} processes")
    for stage, seconds in zip(STAGES, least, strict=True):
        print(f"  {stage:26} {seconds * 1000:6.0f} ms  {seconds / whole:5.0%}")
    if options.definitions <= 500 and whole > BUDGET_SECONDS:
        sys.exit(f"more than the {BUDGET_SECONDS * 1000:.0f} ms that they may take")


if __name__ == "__main__":
    main()
