"""The channels of a profile."""

from __future__ import annotations

from collections.abc import Sequence

from archiver.jobs.notify.channels import Channel, Command, Desktop, Mail, Webhook
from archiver.jobs.notify.deliver import Subscription
from archiver.jobs.profile import Channel as Chosen


def subscriptions(chosen: Sequence[Chosen]) -> list[Subscription]:
    """Whom to tell, and of what."""
    return [
        Subscription(_channel(each.kind, each.to or ""), frozenset(each.on))
        for each in chosen
        if each.kind != "heartbeat"
    ]


def heartbeats(chosen: Sequence[Chosen]) -> list[str]:
    """URLs to ask for when all is well."""
    return [each.to for each in chosen if each.kind == "heartbeat" and each.to is not None]


def _channel(kind: str, to: str) -> Channel:
    if kind == "mail":
        return Mail((to,))
    if kind == "webhook":
        return Webhook(to)
    return Command(to) if kind == "command" else Desktop()
