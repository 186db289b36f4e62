"""``tokenfleet providers``: what the fleet knows about providers, and whether definitions hold together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import counted, json_option, print_json, print_wrapped, shown
from cli.provider_health import health
from cli.provider_list import list_providers
from cli.provider_trials import try_out
from cli.unknowns import unknowns

if TYPE_CHECKING:
    from providers.spec import ProviderSpec
    from tokenfleet.settings import Settings


@click.group()
def providers() -> None:
    """List, explain, validate and complete provider definitions.

    A provider is a TOML file: endpoints, fields, errors, lifetimes, pace. The built-in ones are joined by
    yours from TOKENFLEET_PROVIDERS_DIR; yours wins where names are equal. Only `unknowns` and
    `health` need the fleet's database.
    """


providers.add_command(list_providers)
providers.add_command(unknowns)
providers.add_command(try_out)
providers.add_command(health)


@providers.command()
@click.argument("name", metavar="NAME|FILE")
@json_option
def show(name: str, as_json: bool) -> None:
    """Explain one provider, or the definition in a file, in plain language.

    What an account and an app have to bring, what is sent, what comes back, what each error leads to, how long
    things live, and what nobody has confirmed. Read it before you register a client there; --json prints the
    whole definition.

    \b
    Examples:
      tokenfleet providers show oidc
      tokenfleet providers show ./acme.toml
    """
    from cli.session import load_offline_settings
    from providers.describe import doubts_of, explain, head

    spec, origin = _definition(name, load_offline_settings())
    if as_json:
        print_json(spec.model_dump(mode="json"))
        return
    doubts = doubts_of(spec)
    print_wrapped(head(spec, origin))
    for section in explain(spec):
        click.echo()
        click.secho(section.title, bold=True)
        print_wrapped((fact.line(doubts) for fact in section.facts), indent=2)


def _definition(name: str, settings: Settings) -> tuple[ProviderSpec, str]:
    """Return the definition called ``name``, or in the file ``name``, and where it was read.

    Raises :class:`tokenfleet.errors.UserError` or :class:`tokenfleet.errors.DefinitionError`.
    """
    from cli.session import load_providers
    from providers.loading import SUFFIX, read_definition
    from tokenfleet.errors import DefinitionError

    if not name.endswith(SUFFIX) and "/" not in name:
        provider = load_providers(settings).get(name)
        return provider.spec, provider.origin
    spec, mistakes = read_definition(Path(name), allow_http=settings.tunables.allow_http_providers)
    if spec is None:
        raise DefinitionError(list(map(str, mistakes)))
    return spec, name


@providers.command()
def schema() -> None:
    """Print the JSON Schema of definitions, for editors.

    Write it beside your definitions, and begin each with the line #:schema ./schema.json: the editor then completes
    keys, and shows what they mean.

    \b
    Example:
      tokenfleet providers schema > schema.json
    """
    from providers.schema import SCHEMA_FILE

    click.echo(SCHEMA_FILE.read_text("utf-8"), nl=False)


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
