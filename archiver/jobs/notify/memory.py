"""What was said: one small durable file per job, so that nothing is said twice and what could not be said still is.

``{"schema": 1, "channels": {NAME: {TOPIC: {"code", "text", "since"}}}}``: what whoever listens to a channel believes to
hold. News are the difference to what does. Nothing in it names a file of a backup: ``Problem.detail`` is not kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from archiver.core.disk import Disk, explained
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError
from archiver.jobs.notify.message import Over, Problem
from archiver.store.snapshots import read_small

_SCHEMA = 1
_LARGEST = 1 << 20  # bytes
_MODE = 0o600
_DIRECTORY_MODE = 0o700


@dataclass(frozen=True, slots=True)
class Said:
    """A problem as it was told."""

    code: str
    text: str
    since: int


@dataclass(slots=True)
class Memory:
    channels: dict[str, dict[str, Said]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str, listener: Listener) -> Memory:
        """Empty when there is none yet, or it is damaged: better said twice than never."""
        try:
            channels = json.loads(read_small(path, _LARGEST))["channels"]
            return cls(
                {
                    name: {
                        topic: Said(str(item["code"]), str(item["text"]), int(item["since"]))
                        for topic, item in topics.items()
                    }
                    for name, topics in channels.items()
                }
            )
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (OSError, ArchiverError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            listener(Notice(f"{path} is damaged: what was told before may be told again", "warning"))
            return cls()

    def write(self, path: str, disk: Disk) -> None:
        """Durable. Raises ArchiverError."""
        channels = {
            name: {topic: {"code": said.code, "text": said.text, "since": said.since} for topic, said in topics.items()}
            for name, topics in self.channels.items()
        }
        text = json.dumps({"schema": _SCHEMA, "channels": channels}, indent=1)
        with explained("write", path):
            disk.make_directories(os.path.dirname(path), _DIRECTORY_MODE)
            disk.put(path, [text.encode() + b"\n"], _MODE, sync=True)

    def keep_only(self, channels: Collection[str]) -> None:
        """Channels that there are no more know nothing when they come back."""
        self.channels = {name: topics for name, topics in self.channels.items() if name in channels}

    def news(self, channel: str, problems: Sequence[Problem]) -> tuple[list[Problem], list[Over]]:
        """What ``channel`` has not said yet: problems that hold, and that those hold no more that it told of."""
        topics = self.channels.get(channel, {})
        held = {problem.topic for problem in problems}
        new = [each for each in problems if each.topic not in topics or topics[each.topic].code != each.code]
        return new, [Over(said.text, said.since) for topic, said in topics.items() if topic not in held]

    def said(self, channel: str, problems: Sequence[Problem], now: int) -> None:
        """``channel`` has told all news: these problems hold."""
        topics = self.channels.get(channel, {})
        self.channels[channel] = {
            each.topic: before
            if (before := topics.get(each.topic)) is not None and before.code == each.code
            else Said(each.code, each.text, now)
            for each in problems
        }
