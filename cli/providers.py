"""``tokenfleet providers``: what the fleet knows about providers, and whether definitions hold together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import counted, duration, json_option, print_json, print_table, shown
from cli.provider_trials import try_out
from cli.unknowns import unknowns

if TYPE_CHECKING:
    from providers import Provider


@click.group()
def providers() -> None:
    """List, explain, validate and complete provider definitions.

    A provider is a TOML file: endpoints, fields, errors, lifetimes, pace. The built-in ones are joined by
    yours from TOKENFLEET_PROVIDERS_DIR; yours wins where names are equal. Only `unknowns` needs the fleet's
    database.
    """


providers.add_command(unknowns)
providers.add_command(try_out)


@dataclass(frozen=True, slots=True)
class ProviderSummary:
    """One line of ``providers list``."""

    name: str
    display_name: str
    category: str
    client_authentication: str
    rotation: str
    access_lifetime_seconds: int | None
    required_variables: tuple[str, ...]
    confidence: str
    origin: str


@providers.command("list")
@json_option
def list_providers(as_json: bool) -> None:
    """List the providers this fleet can refresh.

    \b
    Example:
      tokenfleet providers list
    """
    from cli.session import load_offline_settings, load_providers

    found = [_summary(provider) for provider in load_providers(load_offline_settings())]
    if as_json:
        print_json(found)
        return
    print_table(
        ("name", "provider", "refresh token", "access token lives", "variables", "confidence", "defined in"),
        (
            (
                each.name,
                each.display_name,
                _ROTATION[each.rotation],
                _lifetime(each.access_lifetime_seconds),
                ", ".join(each.required_variables),
                each.confidence,
                Path(each.origin).name,
            )
            for each in found
        ),
    )


_ROTATION = {"never": "stays", "sometimes": "may be replaced", "always": "replaced each time"}


def _lifetime(seconds: int | None) -> str:
    from datetime import timedelta

    return "as answered" if seconds is None else duration(timedelta(seconds=seconds))


def _summary(provider: Provider) -> ProviderSummary:
    spec = provider.spec
    return ProviderSummary(
        name=provider.name,
        display_name=provider.display_name,
        category=spec.category,
        client_authentication=spec.client.authentication,
        rotation=spec.rotation.policy,
        access_lifetime_seconds=spec.lifetimes.access_seconds,
        required_variables=tuple(sorted(provider.required_variables())),
        confidence=spec.confidence,
        origin=provider.origin,
    )


@providers.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Explain one provider: what is sent, what comes back, what each error leads to.

    Read it before you register a client there; --json prints the whole definition.

    \b
    Example:
      tokenfleet providers show oidc
    """
    from cli.session import load_offline_settings, load_providers
    from providers.describe import describe

    provider = load_providers(load_offline_settings()).get(name)
    if as_json:
        print_json(provider.spec.model_dump(mode="json"))
        return
    for line in describe(provider):
        click.echo(shown(line))


@dataclass(frozen=True, slots=True)
class DefinitionProblem:
    """One mistake in one definition."""

    file: str
    line: int | None
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Validation:
    """What ``providers validate`` found."""

    valid: bool
    files: tuple[str, ...]
    problems: tuple[DefinitionProblem, ...]


@providers.command()
@click.argument("paths", metavar="[FILE|DIRECTORY]...", nargs=-1, type=click.Path(path_type=Path))
@json_option
@click.pass_context
def validate(ctx: click.Context, paths: tuple[Path, ...], as_json: bool) -> None:
    """Check definitions and explain every mistake with file, line, key and reason.

    Without arguments it checks the built-in definitions and those in TOKENFLEET_PROVIDERS_DIR. Run it in the
    CI of the repository that holds your definitions: exit code 1 if there is a mistake.

    \b
    Example:
      tokenfleet providers validate acme.toml
    """
    from cli.session import load_offline_settings
    from providers.loading import validate_paths
    from providers.registry import CATALOG

    settings = load_offline_settings()
    if not paths:
        paths = (CATALOG,) if settings.providers_dir is None else (CATALOG, settings.providers_dir)
    problems: list[DefinitionProblem] = []
    # One at a time: a definition of yours may have the name of a built-in one, and then takes its place.
    for path in paths:
        problems += (
            DefinitionProblem(problem.file, problem.line, problem.key, problem.reason)
            for problem in validate_paths([path], allow_http=settings.tunables.allow_http_providers)
        )
    if as_json:
        print_json(Validation(not problems, tuple(map(str, paths)), tuple(problems)))
    else:
        for problem in problems:
            place = problem.file if problem.line is None else f"{problem.file}:{problem.line}"
            reason = f"{problem.key} {problem.reason}" if problem.key else problem.reason
            click.echo(shown(f"{place}: {reason}"), err=True)
        if problems:
            click.echo(f"{counted(len(problems), 'mistake')} found.", err=True)
        else:
            click.echo(f"No mistakes in {', '.join(map(str, paths))}.")
    if problems:
        ctx.exit(1)
