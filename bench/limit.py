"""The machine's own limit: the work that no backup can avoid, on two threads and with nothing else.

``python -m bench.limit SOURCE TARGET`` reads every byte below SOURCE, takes the SHA-256 of every 4 MiB, compresses each
piece not seen before with zstd level 1 and writes it to a file in TARGET (as it is where that is smaller). There are
no names, no metadata, no index and no fsync. It prints one JSON object: ``wall`` and ``cpu`` seconds of this work
alone, without the start of the interpreter.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import zstandard

from bench import trees

PIECE = 4 << 20
THREADS = 2

Segment = tuple[str, int, int]  # path, offset, length


def pieces(source: Path) -> Iterator[list[Segment]]:
    """The files below ``source``, one after the other, cut every PIECE bytes."""
    piece: list[Segment] = []
    room = PIECE
    for entry in trees.walk(source):
        offset, size = 0, entry.status.st_size if entry.is_file else 0
        while offset < size:
            length = min(room, size - offset)
            piece.append((entry.path, offset, length))
            offset += length
            room -= length
            if not room:
                yield piece
                piece, room = [], PIECE
    if piece:
        yield piece


def work(source: Path, target: Path) -> None:
    """Does all of it; ``target``, an empty directory, gets a file for each different piece, named by its SHA-256."""
    todo = pieces(source)
    seen: set[bytes] = set()
    lock = threading.Lock()
    failures: list[BaseException] = []

    def worker() -> None:
        buffer = memoryview(bytearray(PIECE))
        compressor = zstandard.ZstdCompressor(level=1)
        try:
            while True:
                with lock:
                    piece = next(todo, None)
                if piece is None:
                    return
                data = buffer[: _fill(buffer, piece)]
                digest = hashlib.sha256(data)
                with lock:
                    new = digest.digest() not in seen
                    seen.add(digest.digest())
                if new:
                    packed = compressor.compress(data)
                    (target / digest.hexdigest()).write_bytes(packed if len(packed) < len(data) else data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=worker) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _fill(buffer: memoryview, piece: list[Segment]) -> int:
    """Reads the segments into ``buffer``, and returns how many bytes came; unreadable files give none."""
    filled = 0
    for path, offset, length in piece:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:
            continue
        try:
            while length and (count := os.preadv(descriptor, [buffer[filled : filled + length]], offset)):
                filled += count
                offset += count
                length -= count
        finally:
            os.close(descriptor)
    return filled


def main(source: str, target: str) -> None:
    started = time.perf_counter()
    spent = time.process_time()
    work(Path(source), Path(target))
    print(json.dumps({"wall": time.perf_counter() - started, "cpu": time.process_time() - spent}))


if __name__ == "__main__":
    main(*sys.argv[1:])
