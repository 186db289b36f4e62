"""``tokenfleet providers test``: definitions against the conformance kit. Everything happens on loopback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cli.group import Failure
from cli.output import counted, json_option, print_json, print_table, shown

if TYPE_CHECKING:
    from conformance import Report
    from providers import Provider
    from tokenfleet.settings import Settings

WHOLE_TABLES: Final = 3
"""For so many definitions each scenario is shown; for more, only what failed."""


class BadInput(Failure):
    """What was named cannot be tested."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """One scenario with one definition: ``passed``, ``failed`` or ``not_applicable``."""

    scenario: str
    verdict: str
    reason: str
    key: str
    line: int | None


@dataclass(frozen=True, slots=True)
class DefinitionTrial:
    """One definition's trial."""

    name: str
    file: str
    passed: bool
    results: tuple[ScenarioResult, ...]


@dataclass(frozen=True, slots=True)
class Trials:
    """What ``providers test`` prints as JSON."""

    passed: bool
    definitions: tuple[DefinitionTrial, ...]


@click.command("test")
@click.argument("names", metavar="[FILE|DIRECTORY|NAME]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Test every provider that this fleet knows.")
@json_option
@click.pass_context
def try_out(ctx: click.Context, names: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Play the providers that definitions describe, and see whether the fleet does right by them.

    Nothing leaves this machine: the provider is played on loopback, as the definition says that it behaves, and the
    fleet's own code refreshes at it, is throttled, rejected and cut off. What contradicts itself shows here. What is
    only wrong about the real provider cannot. Exit code 1 if a scenario failed, 2 if a definition has mistakes.

    \b
    Examples:
      tokenfleet providers test acme.toml
      tokenfleet providers test --all
    """
    from cli.session import load_offline_settings
    from conformance import run_all

    if not names and not everything:
        raise BadInput(["name definition files, directories or providers, or give --all"])
    chosen = _chosen(names, everything, load_offline_settings())
    reports = run_all((provider, None) for provider in chosen)
    trials = tuple(map(_trial, chosen, reports))
    if as_json:
        print_json(Trials(all(each.passed for each in trials), trials))
    else:
        _print(trials)
    if not all(each.passed for each in trials):
        ctx.exit(1)


def _chosen(names: Sequence[str], everything: bool, settings: Settings) -> list[Provider]:
    """Return the definitions to test. Raises :class:`BadInput` when one is unknown, or has mistakes."""
    from cli.session import load_providers
    from providers.loading import SUFFIX, read_directory, read_files
    from providers.registry import Provider
    from tokenfleet.errors import UserError

    allow_http = settings.tunables.allow_http_providers
    chosen: list[Provider] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            definitions, problems = read_directory(path, allow_http=allow_http)
            if not definitions and not problems:
                raise BadInput([f"{path} holds no {SUFFIX} file"])
        elif path.suffix == SUFFIX or path.exists():
            definitions, problems = read_files([path], allow_http=allow_http)
        else:
            try:
                chosen.append(load_providers(settings).get(name))
            except UserError as error:
                raise BadInput([str(error)]) from None
            continue
        if problems:
            raise BadInput(list(map(str, problems)))
        chosen += (
            Provider.compile(each.spec, origin=each.file, allow_http=allow_http) for each in definitions
        )
    if everything:
        chosen += load_providers(settings)
    return chosen


def _trial(provider: Provider, report: Report) -> DefinitionTrial:
    from providers.problems import Lines

    lines = None
    results: list[ScenarioResult] = []
    for result in report.results:
        line = None
        if result.location:
            lines = lines or Lines(Path(provider.origin).read_text("utf-8"))
            line = lines.of(result.location)
        results.append(ScenarioResult(result.scenario, result.verdict, result.reason, result.key, line))
    return DefinitionTrial(report.name, provider.origin, report.passed, tuple(results))


def _print(trials: Sequence[DefinitionTrial]) -> None:
    for trial in trials:
        told = [each for each in trial.results if len(trials) <= WHOLE_TABLES or each.verdict == "failed"]
        if not told:
            continue
        click.echo(shown(f"{trial.name} ({trial.file})"))
        print_table(
            ("scenario", "result", "where", "why"),
            ((each.scenario, _RESULTS[each.verdict], _place(each), each.reason) for each in told),
        )
        click.echo()
    results = [each.verdict for trial in trials for each in trial.results]
    click.echo(
        f"{counted(len(trials), 'definition')}: {results.count('passed')} scenarios passed, "
        f"{results.count('failed')} failed, {results.count('not_applicable')} do not apply."
    )
    failed = [trial.name for trial in trials if not trial.passed]
    if failed:
        click.echo(shown(f"Failed: {', '.join(failed)}."), err=True)


_RESULTS: Final = {"passed": "passed", "failed": "FAILED", "not_applicable": "-"}


def _place(result: ScenarioResult) -> str:
    return result.key if result.line is None else f"line {result.line}: {result.key}"
