"""Time to the first byte: ``python -m bench.first_byte``. ``cat`` of one file of an archive of 100 GiB.

The archive is one sparse file of that size, all of it the same chunk of zeros, and a small file behind it. Nothing
could back that up in reasonable time, so index files and manifest are written as a backup would write them.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from statistics import median

from archiver.store.layout import MANIFEST, GroupRef, Layout, SnapshotRef
from archiver.store.store import Store
from bench.peers import PROJECT
from formats import blob
from formats.index import DynamicIndexWriter
from formats.manifest import FileInfo, Manifest
from formats.pxar.encoder import Encoder
from formats.pxar.metadata import Metadata, Stat
from formats.wire import Buffer

GROUP = GroupRef("", "host", "bench")
WHEN = 1_700_000_000
CHUNK = 4 << 20  # bytes
LAST = b"the small file behind it\n"
TARGET_SECONDS = 0.3


def build(path: Path, size: int) -> None:
    """A store with one snapshot: ``zeros`` of ``size`` bytes (a multiple of CHUNK), and ``zz`` behind it."""
    Store.create(path)
    layout = Layout(str(path))
    ref = SnapshotRef(GROUP, WHEN)
    directory = Path(layout.snapshot(ref))
    directory.mkdir(parents=True)
    metadata = Metadata(Stat(0o100644, 0, 0, 0, WHEN, 0))
    archive: list[Buffer] = []
    payload: list[Buffer] = []
    encoder = Encoder(archive.append, payload.append)
    encoder.start_root(Metadata(Stat(0o40755, 0, 0, 0, WHEN, 0)))
    offset = encoder.start_payload(size)
    before = len(payload)
    encoder.advance(size)
    encoder.add_file(b"zeros", metadata, size, offset)
    offset = encoder.start_payload(len(LAST))
    payload.append(LAST)
    encoder.advance(len(LAST))
    encoder.add_file(b"zz", metadata, len(LAST), offset)
    encoder.end_directory()
    encoder.finish()
    zeros = [bytes(CHUNK)] * (size // CHUNK)
    pieces = [b"".join(payload[:before]), *zeros, b"".join(payload[before:])]
    files = (
        _write(layout, directory, "data.mpxar.didx", [b"".join(archive)]),
        _write(layout, directory, "data.ppxar.didx", pieces),
    )
    manifest = Manifest(GROUP.type, GROUP.id, WHEN, files, {}, None)
    (directory / MANIFEST).write_bytes(blob.encode(manifest.encode()))


def _write(layout: Layout, directory: Path, filename: str, pieces: Sequence[bytes]) -> FileInfo:
    """An index file and the chunks it needs."""
    index = DynamicIndexWriter(bytes(16), WHEN)
    digests: dict[int, bytes] = {}  # by the identity of a piece, which is often the same one
    end = 0
    for piece in pieces:
        digest = digests.get(id(piece))
        if digest is None:
            digest = digests[id(piece)] = sha256(piece).digest()
            path = Path(layout.chunk(digest.hex()))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(blob.encode(piece))
        end += len(piece)
        index.add(end, digest)
    entries = index.take()
    (directory / filename).write_bytes(index.finish() + entries)
    return FileInfo(filename, "none", index.size, index.csum)


def first_byte(path: Path, name: str) -> tuple[float, bytes]:
    """Seconds from the start of the process to its first byte, and that."""
    command = [sys.executable, "-m", "archiver", "--store", str(path), "cat", f"host/{GROUP.id}", name]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=path) as process:
        assert process.stdout is not None
        byte = process.stdout.read(1)
        took = time.perf_counter() - started
        process.kill()
    return took, byte


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.first_byte", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=100, metavar="GIB")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="archiver-cat-", dir="/var/tmp") as temporary:
        path = Path(temporary) / "store"
        build(path, options.size << 30)
        for name, expected in (("zz", LAST[:1]), ("zeros", b"\0")):
            spent = _cpu()
            found = [first_byte(path, name) for _ in range(options.rounds)]
            spent = (_cpu() - spent) / options.rounds
            if {byte for _, byte in found} != {expected}:
                raise SystemExit(f"{name} begins otherwise")
            took = median(seconds for seconds, _ in found)
            verdict = "met" if took < TARGET_SECONDS else "MISSED"
            print(f"{name}: first byte after {took:.3f} s ({spent:.3f} s of CPU), target {TARGET_SECONDS} s  {verdict}")
    return 0


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
