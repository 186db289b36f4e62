"""The house keeps its shape: generic names are ours, dependencies are declared, the lock is what it says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
CLIENT: Final = "tokenfleet_client"
PACKAGES: Final = (
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
HOMES: Final[Mapping[str, Path]] = {name: ROOT / name for name in PACKAGES} | {
    CLIENT: ROOT / "client" / "src" / CLIENT
}
EVERYDAY: Final = frozenset(
    {
        "box", "cal", "close", "constant", "exact", "front", "line", "linear", "monday", "oidc", "slack", "square",
        "threads", "x",
    }
)  # fmt: skip
"""First words of catalogue entries that code may use: words of everyday language, and one standard."""
KEY_SERVICES: Final = {"aws": ("tokenfleet/key_rings.py", "tokenfleet/key_services/")}
"""Who keeps keys for us as well, and where that is said: no provider is treated in a way of its own there."""


def project(folder: Path) -> dict[str, Any]:
    """The pyproject.toml in ``folder``."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def sources(folder: Path) -> Iterator[Path]:
    """Python files under ``folder`` that are part of the repository, tests left out."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name == "__pycache__" or entry == ROOT / "tests":
            continue
        if entry.is_dir():
            yield from sources(entry)
        elif entry.suffix == ".py":
            yield entry


@cache
def locked() -> dict[str, str]:
    """Each entry of requirements.lock by canonical name: its line and the hashes that follow."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    entries = [line for line in joined.splitlines() if line.strip()]
    return {canonicalize_name(re.split(r"[^\w.-]", entry, maxsplit=1)[0]): entry for entry in entries}


def declared(folder: Path, *, tools: bool = True) -> list[Requirement]:
    """Every dependency of the distribution in ``folder``, its extras included; ``tools`` is ``dev``."""
    table = project(folder)["project"]
    extras = table.get("optional-dependencies", {}).items()
    optional = [text for extra, texts in extras if tools or extra != "dev" for text in texts]
    return [Requirement(text) for text in (*table["dependencies"], *optional)]


@pytest.mark.parametrize("name", HOMES)
def test_each_of_our_names_is_imported_from_this_checkout(name: str) -> None:
    spec = find_spec(name)

    assert spec is not None
    assert spec.origin is not None, f"{name} has no __init__.py"
    assert Path(spec.origin).resolve() == HOMES[name] / "__init__.py"


@pytest.mark.parametrize("name", HOMES)
def test_none_of_our_names_hides_the_standard_library(name: str) -> None:
    assert name not in sys.stdlib_module_names


def test_the_wheel_and_the_import_contracts_name_the_same_packages() -> None:
    tool = project(ROOT)["tool"]

    assert sorted(tool["hatch"]["build"]["targets"]["wheel"]["packages"]) == sorted(PACKAGES)
    assert sorted(tool["importlinter"]["root_packages"]) == sorted(HOMES)
    assert set(HOMES) - {CLIENT} <= set(tool["mypy"]["files"])


def test_no_folder_of_tests_is_a_package() -> None:
    # A lone tests/workers/__init__.py shadows the package workers, in both import modes of pytest.
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_provider_is_named_in_code() -> None:
    stems = {path.stem for path in (ROOT / "providers" / "catalog").glob("*.toml")}
    brands = {re.split("[-_]", stem)[0] for stem in stems} - EVERYDAY | {"intuit", "twitter"}
    # An everyday word with what follows it is a brand again.
    whole = {stem.replace("_", "[-_ ]?") for stem in stems if "_" in stem and stem.split("_")[0] in EVERYDAY}
    assert len(brands) > 10, "the catalogue is empty"
    assert whole
    word = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(sorted(brands | whole))})(?![a-z0-9])", re.IGNORECASE)

    named = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in sources(ROOT)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := word.search(line))
        and not path.relative_to(ROOT).as_posix().startswith(KEY_SERVICES.get(match[0].lower(), ("-",)))
    ]

    assert not named, "\n".join(named)


@pytest.mark.parametrize("name", HOMES)
def test_every_library_that_a_package_imports_is_declared_by_its_distribution(name: str) -> None:
    owners = packages_distributions()
    home = ROOT / "client" if name == CLIENT else ROOT
    allowed = {canonicalize_name(requirement.name) for requirement in declared(home, tools=False)}

    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources(HOMES[name])
        for module in imported(path)
        if module not in sys.stdlib_module_names
        and module not in HOMES
        and allowed.isdisjoint(canonicalize_name(owner) for owner in owners.get(module, ()))
    }

    assert undeclared == set()


def imported(path: Path) -> Iterator[str]:
    """The top-level names that the file at ``path`` imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.partition(".")[0]


def test_importing_the_client_brings_nothing_of_the_application_with_it() -> None:
    foreign = {"aiohttp", "celery", "httpx", "kombu", "redis", "sqlalchemy", *PACKAGES}
    program = f"import sys, {CLIENT}; print(*sorted({foreign!r}.intersection(sys.modules)))"

    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert shown.stdout.split() == []


def test_the_client_needs_a_postgres_driver_and_a_crypto_library_and_nothing_else() -> None:
    table = project(ROOT / "client")["project"]
    assert {Requirement(text).name for text in table["dependencies"]} == {"cryptography", "psycopg"}
    # The adapters' libraries are there already, or their users would not want an adapter.
    extras = {
        name: [Requirement(text).name for text in texts]
        for name, texts in table["optional-dependencies"].items()
    }
    assert extras == {"httpx": ["httpx"], "requests": ["requests"]}


def test_both_distributions_carry_the_licence_and_only_the_client_may_be_uploaded() -> None:
    application, client = project(ROOT)["project"], project(ROOT / "client")["project"]

    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "client" / "LICENSE").read_bytes()
    assert application["license"] == client["license"] == "Apache-2.0"
    assert "Private :: Do Not Upload" in application["classifiers"]
    assert "Private :: Do Not Upload" not in client["classifiers"]


def test_every_entry_of_the_lock_is_pinned_and_hashed() -> None:
    entry = re.compile(r"[\w.-]+==[\w.!+]+(?:\s*;[^#@]+?)?(?:\s*--hash=sha256:[0-9a-f]{64})+")

    assert [text for text in locked().values() if not entry.fullmatch(text)] == []


def test_the_lock_names_no_place_to_download_from_and_neither_of_our_distributions() -> None:
    assert "://" not in (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert {"tokenfleet", "tokenfleet-client"}.isdisjoint(locked())


def test_the_lock_satisfies_every_declared_dependency() -> None:
    requirements = [*declared(ROOT), *declared(ROOT / "client")]
    wanted = [requirement for requirement in requirements if requirement.name != "tokenfleet-client"]

    missing = [
        str(requirement)
        for requirement in wanted
        if (pin := re.match(r"[\w.-]+==([\w.!+]+)", locked().get(canonicalize_name(requirement.name), "")))
        is None
        or not requirement.specifier.contains(pin[1], prereleases=True)
    ]

    assert missing == [], "run 'make lock'"


@pytest.mark.parametrize(
    ("folder", "packages", "data"),
    [
        (
            ROOT,
            set(PACKAGES),
            {
                *(path.relative_to(ROOT).as_posix() for path in (ROOT / "providers").rglob("*.toml")),
                *(path.relative_to(ROOT).as_posix() for path in (ROOT / "store").rglob("*.lua")),
                *(
                    path.relative_to(ROOT).as_posix()
                    for path in (ROOT / "store" / "migrations").rglob("*.mako")
                ),
                "providers/schema.json",
            },
        ),
        (ROOT / "client", {CLIENT}, {"tokenfleet_client/py.typed"}),
    ],
    ids=["tokenfleet", "tokenfleet-client"],
)
def test_a_wheel_holds_our_packages_with_their_data_and_nothing_else(
    folder: Path, packages: set[str], data: set[str], tmp_path: Path
) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())

    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == packages
    assert data <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
