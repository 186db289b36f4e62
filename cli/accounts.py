"""``tokenfleet accounts``: the group; each command is imported when it is called."""

from __future__ import annotations

import click

from cli.group import CommandGroup, Entry, Sections

SECTIONS: Sections = {
    "Bring them in": {
        "import": Entry(
            "cli.accounts_import:import_accounts", "Import connections, or new tokens for known ones."
        ),
    },
    "Take them elsewhere": {
        "export": Entry(
            "cli.accounts_export:export", "List accounts whole, or seal them for another fleet and let go."
        ),
    },
    "Look": {
        "list": Entry("cli.accounts_look:list_accounts", "List accounts by provider, status or tenant."),
        "show": Entry("cli.accounts_look:show", "Show one account and say why it stands where it stands."),
        "history": Entry(
            "cli.accounts_history:history", "Answer why one account stopped, and show what happened to it."
        ),
    },
    "Act": {
        "refresh": Entry("cli.accounts_act:refresh", "Refresh accounts now, ahead of their time."),
        "pause": Entry("cli.accounts_act:pause", "Leave accounts alone until they are resumed."),
        "resume": Entry("cli.accounts_act:resume", "Refresh paused accounts again."),
        "revoke": Entry("cli.accounts_revoke:revoke", "End grants: tell the provider, forget the tokens."),
    },
}


@click.group(cls=CommandGroup, sections=SECTIONS)
def accounts() -> None:
    """Import, list, explain, refresh, pause, resume, revoke and export accounts.

    An account is one customer's connection at one provider. It is named by its id, or by
    PROVIDER/EXTERNAL_ID.
    """
