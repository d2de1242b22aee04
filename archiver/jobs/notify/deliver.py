"""Saying what is new, once, on every channel. Nothing here ends a run: a channel that fails is reported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from archiver.core.clock import Clock
from archiver.core.disk import Disk
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError
from archiver.jobs.notify.channels import Channel
from archiver.jobs.notify.memory import Memory
from archiver.jobs.notify.message import Message, compose
from archiver.jobs.notify.web import host_of, ping
from archiver.jobs.standing import Trouble

SAID = "said.json"  # in the job's directory of state


@dataclass(frozen=True, slots=True)
class Subscription:
    """A channel and what it is told of: failure (also a crash, and what a guard holds), overdue, recovery, success."""

    channel: Channel
    on: frozenset[str]

    def hears(self, event: str) -> bool:
        return ("failure" if event in ("held", "crash") else event) in self.on


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one message. ``reason``: why it could not be sent."""

    channel: str
    event: str
    reason: str | None

    def as_json(self) -> dict[str, Any]:
        return {"channel": self.channel, "event": self.event, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Told:
    items: tuple[Delivery, ...]

    @property
    def failed(self) -> tuple[Delivery, ...]:
        return tuple(item for item in self.items if item.reason is not None)

    def as_json(self) -> dict[str, Any]:
        return {"schema": 1, "items": [item.as_json() for item in self.items]}


def deliver(
    job: str,
    troubles: Sequence[Trouble],
    listeners: Sequence[Subscription],
    directory: str,
    *,
    done: str | None = None,
    is_all: bool = True,
    clock: Clock,
    listener: Listener,
    disk: Disk | None = None,
) -> Told:
    """Tell what is new since the last time. ``troubles``: all that there are, so that others that were told are over;
    without ``is_all`` nothing is known of others.

    A channel that fails is tried again the next time. ``directory``: where the job keeps its state. ``done``: one
    sentence about a run that went well.
    """
    path, disk = os.path.join(directory, SAID), disk or Disk()
    memory, now = Memory.read(path, listener), clock.now()
    memory.keep_only({each.channel.name for each in listeners})
    items: list[Delivery] = []
    for each in listeners:
        name = each.channel.name
        heard = [trouble for trouble in troubles if each.hears(trouble.kind)]
        new, over = memory.news(name, heard)
        over = over if is_all else []
        gone = over if each.hears("recovery") else []
        good = done if each.hears("success") else None
        if new or gone or good is not None:
            message = compose(job, os.uname().nodename, now, new, gone, good)
            items.append(_send(each.channel, message, listener))
            if items[-1].reason is not None:
                continue
        if new or over:
            memory.said(name, heard, is_all=is_all)
            _remember(memory, path, disk, listener)
    return Told(tuple(items))


def try_out(job: str, listeners: Sequence[Subscription], *, clock: Clock, listener: Listener) -> Told:
    """A message on every channel, so that somebody sees that it comes."""
    message = Message(
        job, os.uname().nodename, clock.now(), "test", ("This is a test: problems of this job are told this way.",)
    )
    return Told(tuple(_send(each.channel, message, listener) for each in listeners))


def beat(url: str, listener: Listener) -> Delivery:
    """The heartbeat: whoever watches that URL raises an alarm when it is not asked for too long. So it is asked when
    all is well, and never otherwise."""
    name = f"heartbeat {host_of(url)}"
    try:
        ping(url)
    except ArchiverError as error:
        listener(Notice(f"{name}: {error}", "warning"))
        return Delivery(name, "heartbeat", str(error))
    return Delivery(name, "heartbeat", None)


def _send(channel: Channel, message: Message, listener: Listener) -> Delivery:
    try:
        channel.send(message)
    except ArchiverError as error:
        listener(Notice(f"nobody was told by {channel.name}: {error}", "warning"))
        return Delivery(channel.name, message.event, str(error))
    return Delivery(channel.name, message.event, None)


def _remember(memory: Memory, path: str, disk: Disk, listener: Listener) -> None:
    """Where it cannot be kept, as on a full disk, people are told all the same, and perhaps once more."""
    try:
        memory.write(path, disk)
    except ArchiverError as error:
        listener(Notice(f"{error}; what was told may be told again", "warning"))
