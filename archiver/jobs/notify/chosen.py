"""The channels of a profile."""

from __future__ import annotations

from collections.abc import Sequence

from archiver.jobs.notify.channels import Channel, Command, Desktop, Mail, Webhook
from archiver.jobs.notify.deliver import Subscription
from archiver.jobs.profile import Channel as Chosen


def subscriptions(chosen: Sequence[Chosen]) -> list[Subscription]:
    """Whom to tell, and of what. A channel that is named twice is one: it has one memory of what it said."""
    found: dict[Channel, frozenset[str]] = {}
    for each in chosen:
        if each.kind != "heartbeat":
            channel = _channel(each.kind, each.to or "")
            found[channel] = found.get(channel, frozenset()) | frozenset(each.on)
    return [Subscription(channel, on) for channel, on in found.items()]


def heartbeats(chosen: Sequence[Chosen]) -> list[str]:
    """URLs to ask for when all is well."""
    return [each.to for each in chosen if each.kind == "heartbeat" and each.to is not None]


def _channel(kind: str, to: str) -> Channel:
    if kind == "mail":
        return Mail((to,))
    if kind == "webhook":
        return Webhook(to)
    return Command(to) if kind == "command" else Desktop()
