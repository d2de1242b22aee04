"""Telling that a job cannot be run because its profile is wrong or gone, which says who is to be told.

So the channels of the last good one are kept with the job's state (0600: what is in an address or URL is nobody's).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from archiver.core.clock import Clock
from archiver.core.disk import Disk, explained
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError
from archiver.jobs.notify.chosen import subscriptions
from archiver.jobs.notify.deliver import Told, deliver
from archiver.jobs.profile import Channel
from archiver.jobs.standing import Trouble
from archiver.store.snapshots import read_small

CHANNELS = "channels.json"  # in the job's directory of state
_SCHEMA = 1
_LARGEST = 1 << 20  # bytes


def remember(channels: Sequence[Channel], directory: str, listener: Listener) -> None:
    """From now on these are told."""
    if tuple(channels) == remembered(directory):
        return
    items = [{"kind": each.kind, "to": each.to, "on": list(each.on)} for each in channels]
    path, disk = os.path.join(directory, CHANNELS), Disk()
    try:
        with explained("write", path):
            disk.make_directories(directory, 0o700)
            disk.put(path, [json.dumps({"schema": _SCHEMA, "channels": items}).encode() + b"\n"], 0o600, sync=True)
    except ArchiverError as error:
        listener(Notice(f"{error}; when the profile is wrong one day, nobody can be told", "warning"))


def remembered(directory: str) -> tuple[Channel, ...]:
    """Nobody where nothing was kept, or it is damaged."""
    try:
        items = json.loads(read_small(os.path.join(directory, CHANNELS), _LARGEST))["channels"]
        return tuple(
            Channel(str(item["kind"]), None if item["to"] is None else str(item["to"]), tuple(map(str, item["on"])))
            for item in items
        )
    except (OSError, ArchiverError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ()


def tell_of_profile(job: str, directory: str, clock: Clock, listener: Listener) -> Told:
    """That the profile is wrong or gone. What exactly is not told: a profile has patterns in it, and commands."""
    text = f"the job cannot be run, its profile is wrong or gone: archiver job check {job}"
    trouble = Trouble("profile", "failure", text, clock.now())
    listeners = subscriptions(remembered(directory))
    return deliver(job, [trouble], listeners, directory, is_all=False, clock=clock, listener=listener)
