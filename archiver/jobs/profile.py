"""What a job's profile says: what is kept where, how long, and who is told. Values alone, see load.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from archiver.backup.specification import ArchiveSpec
from archiver.browse.verify_result import Budget
from archiver.store.filters import GroupFilter
from archiver.store.layout import GroupRef
from archiver.store.retention import Retention
from formats.patterns import Pattern

Mode = Literal["metadata", "data", "legacy"]
CryptMode = Literal["none", "encrypt", "sign-only"]
When = Literal["before", "after", "on-failure", "finally"]
Policy = Literal["skip", "run"]

CHANNELS = ("desktop", "mail", "webhook", "command", "heartbeat")
OCCASIONS = ("failure", "overdue", "recovery", "success")
COPY = "job.conf"  # the archive that the profile is kept as in each snapshot


@dataclass(frozen=True, slots=True)
class Key:
    """``file`` None: the user's own key when there is one. ``crypt`` None: encrypt when there is a key."""

    file: str | None
    crypt: CryptMode | None
    passphrase_file: str | None
    passphrase_command: str | None
    master_public: str | None


@dataclass(frozen=True, slots=True)
class Sources:
    """``specs``: what a snapshot is made of, the outputs of commands too."""

    specs: tuple[ArchiveSpec, ...]
    excludes: tuple[Pattern, ...]
    exclude_caches: bool
    all_file_systems: bool
    include_dev: tuple[str, ...]
    mode: Mode
    audit: float


@dataclass(frozen=True, slots=True)
class Verify:
    """``every`` seconds, ``budget`` None for all. None where the profile turns it off."""

    every: int
    budget: Budget | None


@dataclass(frozen=True, slots=True)
class Sync:
    """A copy in another store. ``max_age``: seconds after which the copy counts as overdue; None: never."""

    target: str
    every: int
    max_age: int | None
    to_namespace: str
    filters: tuple[GroupFilter, ...]
    transfer_last: int | None
    verified_only: bool
    remove_vanished: bool
    rate: int | None


@dataclass(frozen=True, slots=True)
class Tape:
    """A copy on the media of a pool."""

    pool: str
    drive: str | None
    every: int
    max_age: int | None


@dataclass(frozen=True, slots=True)
class Drill:
    """A restore for practice: of ``files`` files, at most ``size`` bytes of them."""

    every: int
    files: int
    size: int
    scratch: str | None


@dataclass(frozen=True, slots=True)
class Hook:
    """A command run in a shell. ``required``: the run fails when it does; ``timeout`` in seconds."""

    when: When
    command: str
    required: bool
    timeout: int


@dataclass(frozen=True, slots=True)
class MaxAge:
    """Seconds after which status says that something is stale; None: never."""

    snapshot: int | None
    verify: int | None
    drill: int | None


@dataclass(frozen=True, slots=True)
class Power:
    """``min_charge``: percent that a battery must have where it is what feeds the machine."""

    on_battery: Policy
    min_charge: int
    metered: Policy


@dataclass(frozen=True, slots=True)
class Schedule:
    """``at``: (hour, minute) in local time; ``days``: names, empty for every day; ``delay``: up to so many seconds
    later, at random. ``on_plug``: also when a drive with a store or a target of the job is plugged in."""

    at: tuple[tuple[int, int], ...]
    days: tuple[str, ...]
    delay: int
    on_plug: bool


@dataclass(frozen=True, slots=True)
class Guard:
    """``share``: percent of the files that may change or vanish at once however quiet the job's history is."""

    enabled: bool
    share: float


@dataclass(frozen=True, slots=True)
class Channel:
    """Who is told of what. ``to``: an address, a URL or a command; None for the desktop."""

    kind: str
    to: str | None
    on: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """``data``: the file as it was read. ``gc_every`` in seconds; None: never. ``reports``: the directory that they are
    written to after each run."""

    name: str
    path: str
    data: bytes
    stores: tuple[str, ...]
    namespace: str
    backup_type: str
    backup_id: str
    owner: str
    note: str | None
    key: Key
    sources: Sources
    retention: Retention
    gc_every: int | None
    verify: Verify | None
    syncs: tuple[Sync, ...]
    tapes: tuple[Tape, ...]
    drill: Drill | None
    hooks: tuple[Hook, ...]
    max_age: MaxAge
    power: Power
    schedule: Schedule | None
    guard: Guard
    channels: tuple[Channel, ...]
    reports: str | None

    @property
    def group(self) -> GroupRef:
        return GroupRef(self.namespace, self.backup_type, self.backup_id)
