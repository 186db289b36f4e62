"""``tokenfleet webhooks``: the group; each command is imported when it is called."""

from __future__ import annotations

import click

from cli.group import CommandGroup, Entry, Sections

SECTIONS: Sections = {
    "Set up": {
        "add": Entry("cli.webhooks_act:add", "Add an endpoint, and show its secret once."),
        "rotate-secret": Entry("cli.webhooks_act:rotate_secret", "Give an endpoint a new secret; both sign."),
        "enable": Entry("cli.webhooks_act:enable", "Send an endpoint again what waits for it."),
        "disable": Entry("cli.webhooks_act:disable", "Send an endpoint nothing until it is enabled."),
        "remove": Entry("cli.webhooks_act:remove", "Remove an endpoint and its log."),
    },
    "Look": {
        "list": Entry("cli.webhooks_look:list_endpoints", "List endpoints, and say which ones fail."),
        "deliveries": Entry(
            "cli.webhooks_look:list_deliveries", "Show what was sent, and what was answered."
        ),
    },
    "Send": {
        "test": Entry("cli.webhooks_send:test", "Send a test event now and show what is answered."),
        "replay": Entry("cli.webhooks_send:replay", "Deliver events once more, under their old ids."),
    },
}


@click.group(cls=CommandGroup, sections=SECTIONS)
def webhooks() -> None:
    """Tell other systems when accounts change: endpoints, their secrets, and what became of each delivery.

    Messages follow Standard Webhooks: docs/webhooks.md is the receiver's guide.
    """
