"""A store for a test: backups, restores and verification through the program's own rooms, and its command line."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from archiver.backup.run import BackupOptions, BackupResult, backup
from archiver.backup.specification import ArchiveSpec
from archiver.browse.snapshot import Snapshot
from archiver.browse.verify import VerifyError, verify
from archiver.core.clock import Clock
from archiver.core.events import Event, Notice
from archiver.restore.run import restore
from archiver.source.walk import WalkOptions
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.compare import differences
from tests.golden_data import GOLDEN

ROOT = Path(__file__).parent.parent
GROUP = GroupRef("", "host", "test")
CHUNK_SIZE = 64 << 10  # the smallest, so that small trees have many chunks


class SetClock(Clock):
    """Wall time as the test says."""

    def __init__(self, now: int) -> None:
        self.time = now

    def now(self) -> int:
        return self.time

    def now_ns(self) -> int:
        return self.time * 10**9


@dataclass
class Heard:
    """A listener that keeps the notices."""

    notices: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.notices.append(event.text)


def save_into(
    store: Store,
    source: Path,
    *,
    group: GroupRef = GROUP,
    time: int | None = None,
    crypt: CryptConfig | None = None,
) -> BackupResult:
    """A backup of ``source`` into an open store."""
    options = BackupOptions(
        group,
        time=time,
        crypt=crypt,
        crypt_mode="none" if crypt is None else "encrypt",
        chunk_size=CHUNK_SIZE,
        walk=WalkOptions(never_enter=store.own_directories()),
    )
    return backup(store, [ArchiveSpec("source", str(source))], options, store.listener)


def save(
    path: Path,
    source: Path,
    *,
    group: GroupRef = GROUP,
    time: int | None = None,
    crypt: CryptConfig | None = None,
    clock: Clock | None = None,
    heard: Heard | None = None,
) -> BackupResult:
    """Open the store at ``path``, back ``source`` up, close it."""
    with Store.open(path, clock=clock, listener=heard or Heard()) as store:
        return save_into(store, source, group=group, time=time, crypt=crypt)


def new_chunks(result: BackupResult) -> int:
    return sum(archive.counters.new_chunks for archive in result.archives)


def every_snapshot(store: Store) -> list[SnapshotRef]:
    """All snapshot directories, unfinished ones too."""
    return [
        SnapshotRef(group, when)
        for namespace in store.namespaces()
        for group in store.groups(namespace)
        for when in store.times(group)
    ]


def damage(path: Path, crypt: CryptConfig | None = None) -> list[VerifyError]:
    """What a verification of the whole store finds."""
    with Store.open(path) as store:
        return verify(store, every_snapshot(store), crypt, Heard()).errors


def restored_differences(
    path: Path, ref: SnapshotRef, source: Path, target: Path, crypt: CryptConfig | None = None
) -> list[str]:
    """Restore ``ref`` to ``target`` and compare it with ``source``."""
    with Store.open(path) as store:
        snapshot = Snapshot(store, ref, crypt)
        result = restore(snapshot, snapshot.restorable(), str(target), verify=True, listener=Heard())
    assert result.problems == []
    return differences(source, target)


def command(*arguments: str | Path) -> list[str]:
    """The program as a command."""
    return [sys.executable, "-m", "archiver", *map(str, arguments)]


def archiver(*arguments: str | Path, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [*wrapper, *command(*arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def unpack_golden_store(directory: Path) -> Path:
    """The store that a PBS made (golden/README.md), unpacked below ``directory``."""
    with tarfile.open(GOLDEN / "datastore.tar") as archive:
        archive.extractall(directory, filter="fully_trusted")
    return directory / "datastore"


def chunk_files(path: Path) -> list[Path]:
    """The chunk files of the store, sorted by digest."""
    return sorted(file for file in (path / ".chunks").glob("*/*") if len(file.name) == 64)


def listing(root: Path) -> dict[str, tuple[int, int, int, int, int]]:
    """Inode, mode, size, mtime and ctime of everything below ``root``: whatever is written shows here."""
    found = {}
    for path in (root, *root.rglob("*")):
        status = path.lstat()
        size = status.st_size
        found[str(path)] = (status.st_ino, status.st_mode, size, status.st_mtime_ns, status.st_ctime_ns)
    return found
