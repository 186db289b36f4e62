"""Started by root, the servers run as an account without privileges. Postgres insists on it.

The account must still reach the binaries and its data, which on a bare machine often lie below a directory
that only root may enter (``/root``, ``mktemp -d``). setpriv(1) of util-linux leaves it one capability for
that, the least that works:

* ``dac_read_search`` enters and reads, but writes nothing that is not the account's own;
* ``dac_override`` where the first is not to be had (Docker's default set lacks it) or not enough (binaries
  that only root may execute);
* none, without setpriv: then every directory above must be open to others.

``no_setuid_fixup`` is not decoration: Postgres and initdb look at their own binary with access(2), which
for an account other than root ignores capabilities unless this securebit is set.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tokenfleet.errors import UserError

UNPRIVILEGED_ACCOUNT: Final = "nobody"

_CAPABILITIES: Final = ("dac_read_search", "dac_override", None)
_REACHES: Final = 'cd "$1" && test -w . && shift && exec "$@"'
_PROBE_SECONDS: Final = 20


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a server runs as, and who owns its files."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Demotion:
    """How to start a program as ``account``. Without one, programs run as whoever starts them."""

    account: Account | None = None
    capability: str | None = None

    @property
    def uid(self) -> int | None:
        """The account to change to by ourselves; None where setpriv does it, or nobody has to."""
        return None if self.account is None or self.capability else self.account.uid

    @property
    def gid(self) -> int | None:
        """The group to change to by ourselves."""
        return None if self.account is None or self.capability else self.account.gid

    def argv(
        self, program: Sequence[str], *, death_signal: signal.Signals = signal.SIGKILL
    ) -> tuple[str, ...]:
        """Return the command that runs ``program``. ``death_signal``: see :mod:`embedded.process`.

        The kernel forgets the death signal when the account changes, so setpriv has to ask for it anew.
        """
        if self.account is None or self.capability is None:
            return tuple(program)
        return (
            "setpriv",
            f"--reuid={self.account.uid}",
            f"--regid={self.account.gid}",
            "--clear-groups",
            "--no-new-privs",
            "--securebits=+no_setuid_fixup",
            f"--inh-caps=+{self.capability}",
            f"--ambient-caps=+{self.capability}",
            f"--pdeathsig={death_signal.name.removeprefix('SIG')}",
            "--",
            *program,
        )

    def give(self, path: Path) -> None:
        """Make ``path`` the account's own."""
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    def run(self, program: Sequence[str], *, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
        """Run ``program`` to its end as the account and return its output and exit code."""
        return subprocess.run(
            self.argv(program),
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else (),
            env=server_environ(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )


def server_environ() -> dict[str, str]:
    """Return the environment of a server: none of ours, which holds keys, and messages in one language."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def demotion_for(work_dir: Path, *, probe: Sequence[str]) -> Demotion:
    """Return how to run a server in ``work_dir``, an existing directory, which becomes the account's own.

    ``probe`` is a harmless command of the server's installation; it proves that the account reaches it.
    A directory that already belongs to some account other than root keeps it.
    Raises :class:`UserError` when the account reaches one of both in no way.
    """
    if os.geteuid() != 0:
        return Demotion()
    account = _account_for(work_dir)
    try:
        os.chown(work_dir, account.uid, account.gid)
        for capability in _CAPABILITIES:
            demotion = Demotion(account, capability)
            if _reaches(demotion, work_dir, probe):
                return demotion
    except PermissionError as error:
        raise UserError(_unreachable(work_dir, probe)) from error
    except OSError as error:
        raise UserError(
            f"Here root cannot hand {work_dir} to the account `{UNPRIVILEGED_ACCOUNT}` ({error.strerror}), "
            "and Postgres does not run as root: start Tokenfleet as an ordinary user."
        ) from error
    raise UserError(_unreachable(work_dir, probe))


def _account_for(work_dir: Path) -> Account:
    owner = work_dir.stat()
    if owner.st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam(UNPRIVILEGED_ACCOUNT)
    except KeyError as error:
        raise UserError(
            f"Postgres does not run as root, and this machine has no account `{UNPRIVILEGED_ACCOUNT}`: "
            "start Tokenfleet as an ordinary user."
        ) from error
    return Account(entry.pw_uid, entry.pw_gid)


def _reaches(demotion: Demotion, work_dir: Path, probe: Sequence[str]) -> bool:
    try:
        result = demotion.run(
            ["/bin/sh", "-c", _REACHES, "sh", str(work_dir), *probe], timeout_seconds=_PROBE_SECONDS
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        # No setpriv on this machine, or a hanging file system.
        return False
    return result.returncode == 0


def _unreachable(work_dir: Path, probe: Sequence[str]) -> str:
    return (
        f"Started by root, the servers run as the account `{UNPRIVILEGED_ACCOUNT}`, which cannot reach "
        f"{work_dir} or {probe[0]}: start Tokenfleet as an ordinary user, install setpriv (util-linux), or "
        "keep both below directories that others may enter."
    )
