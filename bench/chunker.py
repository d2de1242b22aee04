"""How fast streams are cut: ``python -m bench.chunker`` prints MB/s (10^6 bytes) of one thread, the best of some runs.

The data is in memory and given to the chunker as one that reads a stream would have it, in pieces of 1 MiB.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from formats.chunker import Chunker

SIZE = 256 << 20
PIECE = 1 << 20
RUNS = 5
AVERAGES = (4 << 20, 1 << 20, 64 << 10)


def cut(data: NDArray[np.uint8], average: int) -> int:
    """Cuts all of ``data``, and returns the number of chunks."""
    chunker = Chunker(average)
    start = chunks = 0
    for end in range(PIECE, data.size + PIECE, PIECE):
        while length := chunker.scan(data[start:end], final=end >= data.size):
            start += length
            chunks += 1
    return chunks


def main() -> None:
    random = np.random.default_rng(1).integers(0, 256, SIZE, dtype=np.uint8)
    for name, data in (("random", random), ("zeros", np.zeros(SIZE, dtype=np.uint8))):
        for average in AVERAGES:
            seconds = []
            for _ in range(RUNS):
                started = time.perf_counter()
                chunks = cut(data, average)
                seconds.append(time.perf_counter() - started)
            print(f"{name:7} average {average >> 10:5} KiB  {SIZE / min(seconds) / 1e6:6.0f} MB/s  {chunks:6} chunks")


if __name__ == "__main__":
    main()
