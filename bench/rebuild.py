"""The database made anew at size: ``python -m bench.rebuild``.

A store with index files of many references, which have no chunk files: a rebuild reads none. Snapshot n refers to a run
of chunks, a share of them replaced anywhere by newer ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from archiver.store import layout as names
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from bench import measure
from bench.gc import CHUNK, DAY, FIRST, NAME
from bench.peers import PROJECT
from formats import blob
from formats.index import DynamicIndexWriter
from formats.manifest import FileInfo, Manifest

GROUP = GroupRef("", "host", "bench")
TARGET_SECONDS = 20.0


def build(path: Path, snapshots: int, references: int, seed: int) -> None:
    """A store of ``snapshots`` with ``references`` each, a hundredth of them new ones each time."""
    Store.create(path)
    rng = np.random.default_rng(seed)
    digests = np.frombuffer(rng.bytes(32 * references), np.uint8).reshape(references, 32).copy()
    for place in range(snapshots):
        if place:
            changed = rng.choice(references, max(references // 100, 1), replace=False)
            digests[changed] = np.frombuffer(rng.bytes(32 * len(changed)), np.uint8).reshape(-1, 32)
        ref = SnapshotRef(GROUP, FIRST + place * DAY)
        directory = path / ref.path
        directory.mkdir(parents=True)
        index = DynamicIndexWriter(bytes(16), ref.time)
        for number in range(references):
            index.add((number + 1) * CHUNK, digests[number].tobytes())
        entries = index.take()
        (directory / NAME).write_bytes(index.finish() + entries)
        file = FileInfo(NAME, "none", index.size, index.csum)
        text = Manifest(GROUP.type, GROUP.id, ref.time, (file,), {}, None).encode()
        (directory / names.MANIFEST).write_bytes(bytes(blob.encode(text)))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rebuild", description=__doc__.split("\n")[0])
    parser.add_argument("--snapshots", type=int, default=20)
    parser.add_argument("--references", type=int, default=50_000, help="of each snapshot")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    os.environ.pop("ARCHIVER_DB_DIR", None)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        path, log = Path(temporary) / "store", Path(temporary) / "log"
        build(path, options.snapshots, options.references, options.seed)
        command = [sys.executable, "-m", "archiver", "--store", str(path), "db", "rebuild"]
        environment = {"PATH": os.defpath, "PYTHONPATH": str(PROJECT), "XDG_CACHE_HOME": temporary, "HOME": temporary}
        began = time.perf_counter()
        finished = measure.run(command, environment=environment, cwd=Path(temporary), output=log)
        took = time.perf_counter() - began
        if finished.code:
            raise SystemExit(f"exit code {finished.code}\n{log.read_text(errors='replace')}")
        total = options.snapshots * options.references
        print(
            f"{total} references in {options.snapshots} snapshots: {took:.2f} s,"
            f" {finished.usage.anon / (1 << 20):.0f} MiB anonymous memory"
        )
    return int(took > TARGET_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
