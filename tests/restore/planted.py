"""Archives of any bytes as snapshots of a real store, and what restoring, listing and reading them does.

``python -m tests.restore.planted STORE PLACE OUTSIDE COUNT`` does that for the hostile corpus in a process of its own,
so that its memory can be watched, and prints JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from archiver.browse.files import contents, listing
from archiver.browse.snapshot import Snapshot
from archiver.browse.view import ArchiveView
from archiver.core.events import ignore
from archiver.errors import ArchiverError, UsageError
from archiver.restore.run import RestoreResult, restore
from archiver.store import layout as names
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.index import DynamicIndexWriter
from formats.manifest import FileInfo, Manifest
from tests.attributes import unlock_tree
from tests.hostile.build import HostileArchive, corpus

GROUP = GroupRef("", "host", "planted")
CHUNK = 1 << 20  # bytes


def plant(store: Store, when: int, archive: bytes, payload: bytes | None) -> SnapshotRef:
    """Write a finished snapshot with one tree, ``x.pxar``."""
    ref = SnapshotRef(GROUP, when)
    directory = Path(store.layout.snapshot(ref))
    directory.mkdir(parents=True)
    streams = {"x.pxar.didx": archive} if payload is None else {"x.mpxar.didx": archive, "x.ppxar.didx": payload}
    files = []
    for filename, data in streams.items():
        index = DynamicIndexWriter(bytes(16), when)
        for start in range(0, len(data), CHUNK):
            piece = data[start : start + CHUNK]
            digest = sha256(piece).digest()
            index.add(start + len(piece), digest)
            path = Path(store.layout.chunk(digest.hex()))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(blob.encode(piece))
        entries = index.take()
        (directory / filename).write_bytes(index.finish() + entries)
        files.append(FileInfo(filename, "none", index.size, index.csum))
    manifest = Manifest(GROUP.type, GROUP.id, when, tuple(files), {}, None)
    (directory / names.MANIFEST).write_bytes(blob.encode(manifest.encode()))
    return ref


def restored(store: Store, ref: SnapshotRef, target: Path, *, verify: bool = True) -> RestoreResult:
    snapshot = Snapshot(store, ref)
    return restore(snapshot, snapshot.restorable(), str(target), verify=verify, listener=ignore)


def read_all(store: Store, ref: SnapshotRef) -> int:
    """List everything and read every file; the number of entries."""
    snapshot = Snapshot(store, ref)
    tree = snapshot.tree(snapshot.archive(None))
    count = 0
    for found in listing(ArchiveView(tree), b"/", recursive=True):
        count += 1
        if found.node.kind in ("file", "hardlink"):
            with suppress(UsageError):  # there are two of that name, as the listing tells where it ends
                for _ in contents(tree, found.path):
                    pass
    return count


def outcome(work: Callable[[], object]) -> list[object]:
    """[exit code, text, kinds of problems] of a call."""
    try:
        done = work()
    except ArchiverError as error:
        return [error.exit_code, str(error), []]
    except Exception:
        return [70, traceback.format_exc(), []]
    kinds = sorted(done.kinds) if isinstance(done, RestoreResult) else []
    return [0, "", kinds]


def sample(archives: dict[str, HostileArchive], count: int) -> list[str]:
    """Names of about ``count`` archives: spread evenly over all, or all of them."""
    chosen = [name for name, it in archives.items() if it.archive and it.payload != b""]  # no index is empty
    step = max(1, len(chosen) // count)
    return chosen[::step]


def main(store_path: str, place: str, outside: str, count: str) -> None:
    peak, done = 0, threading.Event()

    def anonymous() -> int:
        with open("/proc/self/status") as status:
            return int(next(line for line in status if line.startswith("RssAnon")).split()[1])

    archives = corpus(os.fsencode(outside))
    chosen = sample(archives, int(count))
    before = anonymous()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    results: dict[str, object] = {}
    with Store.open(store_path) as store:
        for number, name in enumerate(chosen, 1):
            ref = plant(store, number, archives[name].archive, archives[name].payload)
            target = Path(place) / "target"
            one = outcome(lambda ref=ref, target=target: restored(store, ref, target))  # type: ignore[misc]
            two = outcome(lambda ref=ref: read_all(store, ref))  # type: ignore[misc]
            results[name] = [one, two, archives[name].refused_by]
            if target.exists():
                unlock_tree(target)
                subprocess.run(["rm", "-rf", str(target)], check=True)  # deeper than Python can
            if os.listdir(place):
                results[name] = [[70, f"{place} holds {os.listdir(place)}", []], two, ""]
                break
    done.set()
    watcher.join()
    print(json.dumps({"peak_kib": peak, "results": results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
