"""Garbage collection at size: ``python -m bench.gc``. The database of a large store, and how long a plan takes.

There are no chunk files and no index files, only the snapshots' manifests and empty shards: what is measured is the
plan, in a process of its own, with its peak of anonymous memory sampled from /proc. Snapshot n refers to a run of
chunks, a share of them replaced anywhere by newer ones; chunks are numbered as they came, digests are random. The
newest snapshot is removed then: its own chunks are what the plan has to find.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archiver.core.events import ignore
from archiver.store import snapshots
from archiver.store.database import records
from archiver.store.database.database import Database, open_database
from archiver.store.database.records import SnapshotRow
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.manifest import FileInfo, Manifest

GROUP = GroupRef("", "host", "bench")
FIRST = 1_700_000_000
DAY = 86_400
CHUNK = 4 << 20  # bytes in the stream
STORED = 2 << 20
NAME = "tree.ppxar.didx"
TARGET_SECONDS = 20.0
TARGET_BYTES = 256 << 20
ROWS_AT_ONCE = 1 << 20


def build(path: Path, chunks: int, count: int, references: int, seed: int) -> int:
    """A store with the database of ``count`` snapshots; how many chunks only the newest one needs."""
    store = Store.create(path)
    base = open_database(str(path / ".archiver" / "db"), store.uuid, ignore)
    if base is None:
        raise SystemExit(f"no database can be opened in {path}")
    rng = np.random.default_rng(seed)
    _put_chunks(base, chunks, rng)
    newest, others = _put_snapshots(path, base, chunks, count, references, rng)
    _put_counters(base, chunks, count)
    base.close()
    return int((newest & ~others).sum()) + int((~newest & ~others).sum())


def _put_chunks(base: Database, chunks: int, rng: np.random.Generator) -> None:
    digests = np.frombuffer(rng.bytes(32 * chunks), "S32")
    order = np.argsort(digests)
    for first in range(0, chunks, ROWS_AT_ONCE):
        part = range(first, min(first + ROWS_AT_ONCE, chunks))

        def rows(txn: Any, part: range = part) -> None:
            chunk, digest = base.table(records.CHUNK), base.table(records.DIGEST)
            plain = digests.view("V32")
            for number in part:
                value = records.CHUNK_VALUE.pack(plain[number].tobytes(), bytes(32), CHUNK, FIRST)
                txn.put(records.U32_KEY.pack(number), value, db=chunk, append=True)
            for number in order[part.start : part.stop].tolist():
                key = plain[number].tobytes()
                txn.put(key, records.DIGEST_VALUE.pack(number, STORED), db=digest, append=True)

        base.change(rows)


def _put_snapshots(
    path: Path, base: Database, chunks: int, count: int, references: int, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Marks of the newest one, and of all others."""
    newest, others = np.zeros(chunks, np.bool_), np.zeros(chunks, np.bool_)
    fresh = (chunks - references) // max(count - 1, 1)
    numbers = np.arange(references, dtype=np.uint32)
    following = references
    for place in range(count):
        if place:
            numbers = numbers.copy()
            numbers[np.sort(rng.choice(references, fresh, replace=False))] = np.arange(following, following + fresh)
            following += fresh
        others |= newest
        newest[:] = False
        newest[numbers] = True
        ref = SnapshotRef(GROUP, FIRST + place * DAY)
        file = FileInfo(NAME, "none", references * CHUNK, bytes(32))
        text = Manifest(GROUP.type, GROUP.id, ref.time, (file,), {}, None).encode()
        directory = path / ref.path
        directory.mkdir(parents=True)
        (directory / NAME).touch()
        (directory / "index.json.blob").write_bytes(bytes(blob.encode(text)))
        stamp = snapshots.manifest_stamp(_layout(path), ref)
        assert stamp is not None
        _put_snapshot(base, place, SnapshotRow(ref.path, stamp, text), numbers)
    return newest, others


def _layout(path: Path) -> Any:
    from archiver.store.layout import Layout

    return Layout(str(path))


def _put_snapshot(base: Database, number: int, row: SnapshotRow, numbers: NDArray[np.uint32]) -> None:
    def work(txn: Any) -> None:
        txn.put(records.U32_KEY.pack(number), row.encode(), db=base.table(records.SNAPSHOT))
        txn.put(records.path_key(row.path), records.U32.pack(number), db=base.table(records.PATH))
        key = records.INDEX_KEY.pack(number, 0)
        txn.put(key, records.pack_numbers(key, numbers), db=base.table(records.INDEX))

    base.change(work)


def _put_counters(base: Database, chunks: int, count: int) -> None:
    meta = {b"chunks": chunks, b"snapshots": count, b"walked": int(time.time()), b"bad": 0}

    def work(txn: Any) -> None:
        for key, value in meta.items():
            txn.put(key, records.U32.pack(value), db=base.table(records.META))

    base.change(work)


_MEASURED = """
import json, sys, threading, time
from archiver.store.store import Store
{imports}

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

most = [0]
def sample():
    while True:
        most[0] = max(most[0], anonymous())
        time.sleep(0.005)

threading.Thread(target=sample, daemon=True).start()
began, busy = time.perf_counter(), time.process_time()
with Store.open(sys.argv[1]) as store:
{work}
took, busy = time.perf_counter() - began, time.process_time() - busy
print(json.dumps({{"seconds": took, "busy": busy, "bytes": max(most[0], anonymous()), **{result}}}))
"""

_PLAN = _MEASURED.format(
    imports="""
from archiver.store.gc.collect import make_plan
from archiver.store.gc.exclusion import exclusive
""",
    work="""
    database = store.database
    with exclusive(store, None, 1445, dry_run=False) as (terms, others):
        plan = make_plan(store, database, terms, others)
""",
    result='{"unused": None if plan.unused is None else len(plan.unused.numbers), "all": plan.all_shards}',
)


_USAGE = _MEASURED.format(
    imports="""
from archiver.store.usage import named, usage
""",
    work="""
    found = usage(store, [*named(store, []), *store.snapshots()])
""",
    result='{"items": len(found.items), "own": found.items[1][1].freed + found.unused}',
)


def measure(program: str, path: Path) -> dict[str, Any]:
    """Run it in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gc", description=__doc__.split("\n")[0])
    parser.add_argument("--chunks", type=int, default=10_000_000)
    parser.add_argument("--snapshots", type=int, default=100)
    parser.add_argument("--references", type=int, default=1_000_000, help="of each snapshot")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    os.environ.pop("ARCHIVER_DB_DIR", None)
    missed = False
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary  # on the same device: the database is in the store
        path = Path(temporary) / f"store-{uuid.uuid4()}"
        own = build(path, options.chunks, options.snapshots, options.references, options.seed)
        size = (path / ".archiver/db/data.mdb").stat().st_size
        print(
            f"{options.chunks} chunks, {options.snapshots} snapshots of {options.references} references,"
            f" database {size / 1e6:.0f} MB",
            flush=True,
        )
        found = measure(_USAGE, path)
        if found["own"] != own * STORED:
            raise SystemExit(f"{found['own']} bytes would be freed, {own * STORED} are")
        if found["bytes"] > TARGET_BYTES:
            missed = True
        print(
            f"du, every snapshot and group: {found['seconds']:.2f} s ({found['busy']:.2f} s of a processor),"
            f" {found['bytes'] / (1 << 20):.0f} MiB anonymous memory, {found['items']} of them",
            flush=True,
        )
        last = path / SnapshotRef(GROUP, FIRST + (options.snapshots - 1) * DAY).path
        for file in last.iterdir():
            file.unlink()
        last.rmdir()
        for what in ("one snapshot removed", "again"):
            found = measure(_PLAN, path)
            if found["unused"] != own:
                raise SystemExit(f"{found['unused']} unused chunks were found, {own} are")
            if found["seconds"] > TARGET_SECONDS or found["bytes"] > TARGET_BYTES:
                missed = True
            print(
                f"plan, {what}: {found['seconds']:.2f} s, {found['bytes'] / (1 << 20):.0f} MiB anonymous memory,"
                f" {own} unused chunks (targets {TARGET_SECONDS:.0f} s, {TARGET_BYTES >> 20} MiB)",
                flush=True,
            )
        (path / ".archiver" / "unlisted").touch()
        found = measure(_PLAN, path)
        print(f"plan, to list all shards: {found['seconds']:.2f} s, {found['bytes'] / (1 << 20):.0f} MiB")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
