"""Backups and restores run inside the test process, with everything they told."""

from __future__ import annotations

import encodings.ascii  # noqa: F401  loaded late otherwise, which a child that gave up its rights may not be able to
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from archiver.backup.run import BackupOptions, BackupResult, Mode, backup
from archiver.backup.specification import ArchiveSpec
from archiver.browse.snapshot import Snapshot
from archiver.core.events import Event, FileProblem, Notice
from archiver.restore.run import RestoreResult, restore
from archiver.source.walk import WalkOptions
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig

KEY = CryptConfig(bytes(range(32)))
GROUP = GroupRef("", "host", "test")
SMALLEST_CHUNK = 64 << 10  # average: trees of some megabytes have many chunks


class Saved(NamedTuple):
    """``problems`` are all that was told about files, harmless things too."""

    ref: SnapshotRef
    result: BackupResult
    problems: list[FileProblem]


def make_store(path: Path) -> Path:
    Store.create(path, name="test")
    return path


def save(
    store: Path,
    sources: Path | dict[str, Path],
    *,
    mode: Mode = "data",
    crypt: CryptConfig | None = None,
    walk: WalkOptions | None = None,
    chunk_size: int = SMALLEST_CHUNK,
) -> Saved:
    """Back up a directory as ``tree.pxar``, or several by their names. The store itself is never entered."""
    events: list[Event] = []
    named = sources if isinstance(sources, dict) else {"tree": sources}
    specs = [ArchiveSpec(name, str(path)) for name, path in named.items()]
    with Store.open(store) as opened:
        options = BackupOptions(
            group=GROUP,
            mode=mode,
            crypt_mode="none" if crypt is None else "encrypt",
            crypt=crypt,
            chunk_size=chunk_size,
            walk=walk or WalkOptions(never_enter=opened.own_directories()),
        )
        result = backup(opened, specs, options, events.append)
    problems = [event for event in events if isinstance(event, FileProblem)]
    return Saved(result.snapshot, result, problems)


def bring_back(
    store: Path,
    ref: SnapshotRef,
    target: Path,
    *,
    crypt: CryptConfig | None = None,
    verify: bool = True,
    archives: Sequence[str] | None = None,
) -> RestoreResult:
    """Restore a snapshot, or the named archives of it."""
    with Store.open(store, read_only=True) as opened:
        snapshot = Snapshot(opened, ref, crypt)
        chosen = snapshot.restorable() if archives is None else [snapshot.archive(name) for name in archives]
        return restore(snapshot, chosen, str(target), verify=verify, listener=_no_warnings)


def _no_warnings(event: Event) -> None:
    assert not isinstance(event, Notice) or event.level != "warning", event
