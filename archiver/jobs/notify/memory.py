"""What was said: one small durable file per job, so that nothing is said twice and what could not be said still is.

``{"schema": 1, "channels": {NAME: {KEY: {"text", "since"}}}}``: the troubles that whoever listens to a channel believes
there are. News are the difference to those that there are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from archiver.core.disk import Disk, explained
from archiver.core.events import Listener, Notice
from archiver.errors import ArchiverError
from archiver.jobs.notify.message import Over
from archiver.jobs.standing import Trouble
from archiver.store.snapshots import read_small

_SCHEMA = 1
_LARGEST = 1 << 20  # bytes
_MODE = 0o600
_DIRECTORY_MODE = 0o700


@dataclass(slots=True)
class Memory:
    channels: dict[str, dict[str, Over]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str, listener: Listener) -> Memory:
        """Empty when there is none yet, or it is damaged: better said twice than never."""
        try:
            channels = json.loads(read_small(path, _LARGEST))["channels"]
            return cls(
                {
                    name: {key: Over(str(item["text"]), int(item["since"])) for key, item in told.items()}
                    for name, told in channels.items()
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
            name: {key: {"text": each.text, "since": each.since} for key, each in told.items()}
            for name, told in self.channels.items()
        }
        text = json.dumps({"schema": _SCHEMA, "channels": channels}, indent=1)
        with explained("write", path):
            disk.make_directories(os.path.dirname(path), _DIRECTORY_MODE)
            disk.put(path, [text.encode() + b"\n"], _MODE, sync=True)

    def keep_only(self, channels: Collection[str]) -> None:
        """Channels that there are no more know nothing when they come back."""
        self.channels = {name: told for name, told in self.channels.items() if name in channels}

    def news(self, channel: str, troubles: Sequence[Trouble]) -> tuple[list[Trouble], list[Over]]:
        """What ``channel`` has not said yet: troubles that there are, and that others are over that it told of."""
        told, keys = self.channels.get(channel, {}), {trouble.key for trouble in troubles}
        new = [trouble for trouble in troubles if trouble.key not in told]
        return new, [each for key, each in told.items() if key not in keys]

    def said(self, channel: str, troubles: Sequence[Trouble], *, is_all: bool) -> None:
        """``channel`` has told all news: these are the troubles that there are, or some of them."""
        told = self.channels.get(channel, {})
        kept = {} if is_all else told
        self.channels[channel] = kept | {
            trouble.key: told.get(trouble.key, Over(trouble.text, trouble.since)) for trouble in troubles
        }
