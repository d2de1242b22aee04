"""A store for a test: backups, restores and verification through the program's own rooms, and its command line."""

from __future__ import annotations

import encodings.ascii  # noqa: F401  loaded late otherwise, which a child that gave up its rights may not be able to
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

from archiver.backup.archive import Compare
from archiver.backup.run import BackupOptions, BackupResult, CryptMode, Mode, backup
from archiver.backup.specification import ArchiveSpec
from archiver.browse.snapshot import Snapshot
from archiver.browse.verify import VerifyError, verify
from archiver.core.clock import Clock
from archiver.core.events import Event, FileProblem, Notice
from archiver.restore.run import RestoreResult, restore
from archiver.source.walk import WalkOptions
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.compare import differences

ROOT = Path(__file__).parent.parent
GROUP = GroupRef("", "host", "test")
KEY = CryptConfig(bytes(range(32)))
CHUNK_SIZE = 64 << 10  # the smallest, so that small trees have many chunks


class SetClock(Clock):
    """Wall time as the test says."""

    def __init__(self, now: int) -> None:
        self.time = now

    def now(self) -> int:
        return self.time

    def now_ns(self) -> int:
        return self.time * 10**9


class Ahead(Clock):
    """Wall time in an hour. What a run looks at was changed long before then, so that nothing of it counts as changed
    in that very moment, which the next run would have to read again."""

    def now(self) -> int:
        return super().now() + 3600

    def now_ns(self) -> int:
        return super().now_ns() + 3600 * 10**9


@dataclass
class Heard:
    """A listener that keeps the notices."""

    notices: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.notices.append(event.text)


class Saved(NamedTuple):
    """``problems`` are all that was told about files, harmless things too."""

    snapshot: SnapshotRef
    result: BackupResult
    problems: list[FileProblem]


def make_store(path: Path) -> Path:
    Store.create(path, name="test")
    return path


def save_into(
    store: Store,
    sources: Path | dict[str, Path],
    *,
    group: GroupRef = GROUP,
    time: int | None = None,
    mode: Mode = "data",
    crypt: CryptConfig | None = None,
    crypt_mode: CryptMode | None = None,
    walk: WalkOptions | None = None,
    chunk_size: int = CHUNK_SIZE,
    compare: Compare = "auto",
    audit: float = 0,
) -> Saved:
    """Back up a directory as ``tree.pxar``, or several sources by their names, which for trees have no extension. The
    store itself is never entered. With a key the snapshot is encrypted unless ``crypt_mode`` says otherwise."""
    named = sources if isinstance(sources, dict) else {"tree": sources}
    options = BackupOptions(
        group,
        mode=mode,
        time=time,
        crypt=crypt,
        crypt_mode=crypt_mode or ("none" if crypt is None else "encrypt"),
        chunk_size=chunk_size,
        compare=compare,
        audit=audit,
        walk=walk or WalkOptions(never_enter=store.own_directories()),
    )
    problems: list[FileProblem] = []

    def hear(event: Event) -> None:
        if isinstance(event, FileProblem):
            problems.append(event)
        store.listener(event)

    names = [(*name.partition("."), str(path)) for name, path in named.items()]
    specs = [ArchiveSpec(name, path, extension or "pxar") for name, _, extension, path in names]
    result = backup(store, specs, options, hear)
    return Saved(result.snapshot, result, problems)


class _Options(TypedDict, total=False):
    """Those of ``save_into``."""

    group: GroupRef
    time: int | None
    mode: Mode
    crypt: CryptConfig | None
    crypt_mode: CryptMode | None
    walk: WalkOptions | None
    chunk_size: int
    compare: Compare
    audit: float


def save(
    path: Path,
    sources: Path | dict[str, Path],
    *,
    clock: Clock | None = None,
    heard: Heard | None = None,
    **options: Unpack[_Options],
) -> Saved:
    """As ``save_into`` the store at ``path``, which is opened and closed. Without a ``clock`` the snapshot has the time
    of now, but the run takes place an hour later: see ``Ahead``."""
    if options.get("time") is None:
        options["time"] = (clock or Clock()).now()
    with Store.open(path, clock=clock or Ahead(), listener=heard or Heard()) as store:
        return save_into(store, sources, **options)


def new_chunks(saved: Saved) -> int:
    return sum(archive.counters.new_chunks for archive in saved.result.archives)


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


def bring_back(
    path: Path,
    ref: SnapshotRef,
    target: Path,
    *,
    crypt: CryptConfig | None = None,
    verify: bool = True,
    archives: Sequence[str] | None = None,
) -> RestoreResult:
    """Restore a snapshot, or the named archives of it."""
    with Store.open(path, read_only=True) as store:
        snapshot = Snapshot(store, ref, crypt)
        chosen = snapshot.restorable() if archives is None else [snapshot.archive(name) for name in archives]
        return restore(snapshot, chosen, str(target), verify=verify, listener=_no_warnings)


def _no_warnings(event: Event) -> None:
    assert not isinstance(event, Notice) or event.level != "warning", event


def restored_differences(
    path: Path, ref: SnapshotRef, source: Path, target: Path, crypt: CryptConfig | None = None
) -> list[str]:
    """Restore ``ref`` to ``target`` and compare it with ``source``."""
    assert bring_back(path, ref, target, crypt=crypt).problems == []
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
