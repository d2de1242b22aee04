"""Cut positions: golden data, the plain recurrence, and independence of how the data arrives."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from itertools import accumulate, cycle, repeat
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from formats import chunker as module
from formats.buzhash import TABLE, WINDOW, CandidateScanner
from formats.chunker import Chunker, PayloadChunker
from tests.golden_data import GOLDEN, content

CASES: list[dict[str, Any]] = json.loads((GOLDEN / "chunker.json").read_text())
SMALL = 1024  # an average below the allowed ones, so that little data gives many chunks


@pytest.fixture(autouse=True)
def small_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST_AVERAGE", 512)


def cuts(data: bytes, average: int, feeds: Iterable[int] = repeat(1 << 20)) -> list[int]:
    """Chunk ends of ``data`` that arrives in pieces of these sizes."""
    chunker, view = Chunker(average), memoryview(data)
    ends, start, arrived, sizes = [], 0, 0, iter(feeds)
    while arrived < len(data):
        arrived = min(arrived + next(sizes), len(data))
        while length := chunker.scan(view[start:arrived], final=arrived == len(data)):
            start += length
            ends.append(start)
    assert chunker.scan(b"", final=True) == 0
    return ends


def first_cut(data: bytes, average: int) -> int:
    """Spec change-detection.md 1.1, byte by byte: the length of the first chunk, 0 if the data ends before."""
    return first_hash_cut(data, 2 * average - 1, average // 4, average * 4)


def first_payload_cut(data: bytes, average: int) -> int:
    """The same for payload streams, when no file begins nearby."""
    return first_hash_cut(data, average // 2 - 1, average // 4 * 3, average * 4)


def hash_passes(data: bytes, mask: int) -> set[int]:
    """All lengths at which the test with this mask passes, once the window is full and has moved."""
    found, at = set(), WINDOW
    while at < len(data) and (length := first_hash_cut(data[at - WINDOW :], mask, WINDOW + 1, len(data) + 1)):
        found.add(at - WINDOW + length)
        at += length - WINDOW
    return found


def first_hash_cut(data: bytes, mask: int, minimum: int, maximum: int) -> int:
    table = TABLE.tolist()
    value = 0
    for i, byte in enumerate(data):
        value = (value << 1 | value >> 31) & 0xFFFF_FFFF ^ table[byte]
        count = i + 1
        if count <= WINDOW:
            continue
        value ^= table[data[i - WINDOW]]
        if count >= maximum or (count >= minimum and value & mask >= mask - 2):
            return count
    return 0


def reference_cuts(data: bytes, average: int) -> list[int]:
    ends, start = [], 0
    while start < len(data):
        start += first_cut(data[start:], average) or len(data) - start
        ends.append(start)
    return ends


def some_sizes(rng: random.Random, smallest: int) -> Iterable[int]:
    """A few sizes of one order of magnitude, over and over."""
    return cycle(rng.choices(range(smallest, rng.choice([20, 300, 3000, 20_000])), k=7))


def mixed_bytes(seed: int, length: int) -> bytes:
    """Runs of random, low alphabet, constant and repeated data."""
    rng, parts = random.Random(seed), [b""]
    while sum(map(len, parts)) < length:
        size = rng.randint(1, length)
        parts.append(
            rng.choice(
                [
                    rng.randbytes(size),
                    rng.randbytes(size),
                    rng.randbytes(size),
                    bytes([rng.randrange(256)]) * size,
                    bytes(rng.choices(b"ab", k=size)),
                    (rng.randbytes(rng.randrange(1, 300)) * size)[:size],
                ]
            )
        )
    return b"".join(parts)[:length]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['desc']}-{case['avg']}-{case['data']['len']}")
def test_golden(case: dict[str, Any]) -> None:
    assert cuts(content(case["data"]), case["avg"]) == case["ends"]


def test_counter_vector() -> None:
    data = np.arange(1 << 18, dtype="<u4").tobytes()
    assert cuts(data, 64 * 1024) == [143377, 405521, 667665, 929809, 1 << 20]


def test_zeros_are_cut_at_the_maximum() -> None:
    assert cuts(bytes(1_000_000), 64 * 1024, repeat(4096)) == [262144, 524288, 786432, 1_000_000]


@pytest.mark.parametrize("average", [2048, 64 * 1024])
@pytest.mark.parametrize("kind", ["random", "letters", "two", "mixed", "counter"])
def test_equal_to_the_recurrence(kind: str, average: int) -> None:
    rng = random.Random(kind)
    data = {
        "random": lambda: rng.randbytes(600_000),
        "letters": lambda: bytes(rng.choices(range(97, 123), k=600_000)),
        "two": lambda: bytes(rng.choices(b"01", k=600_000)),
        "mixed": lambda: mixed_bytes(4, 600_000),
        "counter": lambda: np.arange(150_000, dtype="<u4").tobytes(),
    }[kind]()
    assert cuts(data, average) == reference_cuts(data, average)


@pytest.mark.parametrize("seed", range(60))
def test_feeding_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    data = mixed_bytes(seed, rng.choice([seed, rng.randint(1, 30_000), rng.randint(10_000, 30_000)]))
    assert cuts(data, SMALL, some_sizes(rng, 1)) == reference_cuts(data, SMALL)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, dtype=np.uint8)])
def test_kinds_of_buffers(wrap: Any) -> None:
    data = random.Random(1).randbytes(8192)
    assert Chunker(SMALL).scan(wrap(data)) == reference_cuts(data, SMALL)[0]


def test_a_buffer_is_released() -> None:
    data = bytearray(random.Random(1).randbytes(8192))
    assert Chunker(SMALL).scan(data)
    data.clear()  # BufferError if a view was kept


def test_minimum_is_the_first_possible_length() -> None:
    data = random.Random(6).randbytes(9000)
    hit = first_cut(data, SMALL)
    assert cuts(data[hit - SMALL // 4 :], SMALL)[0] == SMALL // 4
    assert cuts(data[hit - SMALL // 4 + 1 :], SMALL)[0] > SMALL // 4


def test_no_byte_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = []
    candidates = CandidateScanner.candidates

    def counting(self: CandidateScanner, data: NDArray[np.uint8], lo: int, hi: int) -> NDArray[np.int64]:
        scanned.append(hi - lo)
        return candidates(self, data, lo, hi)

    monkeypatch.setattr(CandidateScanner, "candidates", counting)
    data = random.Random(7).randbytes(300_000)
    for feed in (500, 300_000):
        scanned.clear()
        assert cuts(data, SMALL, repeat(feed))
        assert 0 < sum(scanned) <= len(data)


def test_many_hits_in_one_block() -> None:
    """Data that passes the test every 64 bytes: all hits after a cut belong to later chunks."""
    rng = random.Random(2)
    while not (found := reference_cuts(unit := rng.randbytes(64) * 64, SMALL)) or found[0] > 1024:
        pass
    data = unit * 40
    assert len(cuts(data, SMALL)) > len(data) // SMALL
    assert cuts(data, SMALL) == cuts(data, SMALL, repeat(100)) == reference_cuts(data, SMALL)


def test_restart_forgets_the_open_chunk() -> None:
    data = random.Random(3).randbytes(60_000)
    chunker = Chunker(8192)
    assert chunker.scan(data[:1900]) == 0
    chunker.restart()
    assert chunker.scan(data[1900:]) == reference_cuts(data[1900:], 8192)[0]
    chunker.restart()  # hits that were kept for the next chunk go, too
    assert chunker.scan(data) == reference_cuts(data, 8192)[0]


@pytest.mark.parametrize("average", [0, -65536, 65536 + 1, 96 * 1024, 32 * 1024, 8 << 20])
def test_averages_that_are_refused(average: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for kind in (Chunker, PayloadChunker):
        with pytest.raises(ValueError, match="average"):
            kind(average)


def test_limits_come_from_the_average() -> None:
    plain, payload = Chunker(4 << 20), PayloadChunker(4 << 20)
    assert (plain.minimum, plain.average, plain.maximum) == (1 << 20, 4 << 20, 16 << 20)
    assert (payload.minimum, payload.average, payload.maximum) == (3 << 20, 4 << 20, 16 << 20)


def test_small_feeds_cost_no_more_than_their_bytes() -> None:
    """A chunk of 16 MiB in pieces of 4 KiB: quadratic work would take minutes."""
    data = random.Random(5).randbytes(1 << 16) * 256
    started = time.process_time()
    assert cuts(data, 4 << 20, repeat(4096))[-1] == len(data)
    assert time.process_time() - started < 60


# The payload rule.


def payload_cuts(
    data: bytes,
    average: int,
    suggestions: list[int],
    feeds: Iterable[int] = repeat(1 << 20),
    ahead: Iterable[int] = repeat(0),
    small: int | None = None,
) -> list[int]:
    """As ``cuts``; ``ahead`` says how far beyond the arrived data suggestions are known."""
    chunker, view = PayloadChunker(average, small), memoryview(data)
    ends, start, arrived, sizes, further = [], 0, 0, iter(feeds), iter(ahead)
    waiting = list(reversed(suggestions))
    while arrived < len(data):
        arrived = min(arrived + next(sizes), len(data))
        known = arrived + next(further)
        while waiting and waiting[-1] < known:
            chunker.suggest(waiting.pop())
        if arrived == len(data):
            for offset in reversed(waiting):
                chunker.suggest(offset)
        while length := chunker.scan(view[start:arrived], final=arrived == len(data)):
            start += length
            ends.append(start)
    return ends


def reference_payload_cuts(data: bytes, average: int, suggestions: list[int]) -> list[int]:
    reach, maximum, small = average // 4, average * 4, module.small_chunk(average)
    ends, start = [], 0
    while start < len(data):
        plain = first_payload_cut(data[start:], average)
        limit = start + plain if plain else len(data) + 1
        passed = hash_passes(data[start:limit], small // 64 - 1)  # the mask of twice the average small / 128
        for border in suggestions:
            window = set(range(border - start - small // 128 + 1, border - start + 1))
            if start + small // 4 * 3 <= border < limit and window & passed:
                start = border
                break
        else:
            border = -1
        if start == border:
            pass
        elif plain:
            end = start + plain
            allowed = range(end, min(end + reach + 1, start + maximum, len(data) + 1))
            start = next((offset for offset in suggestions if offset in allowed), end)
        else:
            start = len(data)
        ends.append(start)
    return ends


def file_borders(rng: random.Random, length: int, mean: float) -> list[int]:
    sizes = (16 + int(rng.expovariate(1 / mean)) for _ in range(int(4 * length / (mean + 16)) + 4))
    return [offset for offset in accumulate(sizes, initial=16) if offset <= length]


@pytest.mark.parametrize("seed", range(90))
def test_payload_cuts_follow_the_rule_alone(seed: int) -> None:
    rng = random.Random(seed)
    data = mixed_bytes(seed, rng.choice([rng.randint(1, 30_000), rng.randint(10_000, 30_000)]))
    borders = file_borders(rng, len(data), rng.choice([0.1, 20, 300, 2000, 9000]))
    expected = reference_payload_cuts(data, SMALL, borders)
    assert payload_cuts(data, SMALL, borders, some_sizes(rng, 1), some_sizes(rng, 0)) == expected
    assert payload_cuts(data, SMALL, borders, repeat(1 << 20)) == expected


def test_mean_size_is_about_the_average() -> None:
    data = random.Random(4).randbytes(4 << 20)
    for average in (4096, 16384):
        assert 0.85 < len(data) / len(payload_cuts(data, average, [])) / average < 1.1


def test_shifted_streams_meet_again() -> None:
    """Bytes put in near the start change a few chunks only."""
    data = random.Random(12).randbytes(400_000)
    before = payload_cuts(data, 4096, [])
    after = [end - 100 for end in payload_cuts(data[:1000] + bytes(100) + data[1000:], 4096, [])]
    assert len(set(before) - set(after)) < 12


def test_chunks_of_small_files_are_small() -> None:
    """Between files of some hundred bytes, chunks have about an eighth of the average, and end where a file begins."""
    data, average = random.Random(14).randbytes(400_000), 16_384
    borders = file_borders(random.Random(15), len(data), 300)
    ends = payload_cuts(data, average, borders)
    assert 0.7 < len(data) / len(ends) / (average // 8) < 1.2
    assert set(ends[:-1]) <= set(borders)
    large = file_borders(random.Random(16), len(data), 100_000)
    few = payload_cuts(data, average, large)
    assert 0.8 < len(data) / len(few) / average < 1.2


def test_which_suggestions_count() -> None:
    data = random.Random(8).randbytes(9000)
    plain = first_payload_cut(data, SMALL)
    reach = SMALL // 4
    assert plain + reach < 4 * SMALL

    def first(*suggestions: int) -> int:
        return payload_cuts(data, SMALL, list(suggestions), repeat(100), small=SMALL)[0]

    assert first(plain - 1) == first(plain + reach + 1) == plain
    assert first(plain - 1, plain) == plain
    assert first(plain + 1, plain + 2) == plain + 1
    assert first(plain + reach) == plain + reach


def test_the_maximum_holds() -> None:
    zeros = bytes(20_000)
    assert payload_cuts(zeros, SMALL, [4097, 4200])[:2] == [4096, 8192]
    chunker = PayloadChunker(SMALL)
    assert chunker.scan(zeros[:4095]) == 0
    assert chunker.scan(zeros[:4096]) == 4096  # nothing to wait for


def test_waits_for_suggestions_and_no_longer() -> None:
    data = random.Random(8).randbytes(9000)
    plain, reach = first_payload_cut(data, SMALL), SMALL // 4
    chunker = PayloadChunker(SMALL, SMALL)
    assert chunker.scan(data[: plain + reach]) == 0
    assert chunker.scan(data[: plain + reach + 1]) == plain
    chunker = PayloadChunker(SMALL, SMALL)
    chunker.suggest(plain + reach + 1)
    assert chunker.scan(data[:plain]) == plain  # the next file begins too far away
    chunker = PayloadChunker(SMALL, SMALL)
    chunker.suggest(plain + 10)
    assert chunker.scan(data[: plain + 9]) == 0
    assert chunker.scan(data[: plain + 10]) == plain + 10


def test_end_of_stream_ends_the_wait() -> None:
    data = random.Random(8).randbytes(9000)
    plain = first_payload_cut(data, SMALL)
    chunker = PayloadChunker(SMALL, SMALL)
    end = data[: plain + 20]
    assert chunker.scan(end) == 0
    assert chunker.scan(end, final=True) == plain
    assert chunker.scan(end[plain:], final=True) == 20
    assert chunker.scan(b"", final=True) == 0


def test_injected_bytes_shift_the_offsets() -> None:
    """Two forced cuts; after each, the stream goes on as one that starts there, with shifted offsets."""
    data = random.Random(9).randbytes(40_000)
    injected = {700: 5000, 21_000: 123}
    borders = file_borders(random.Random(9), 40_000, 300)
    results = []
    for feed in (64, 5000):
        chunker, ends, start, shift, arrived = PayloadChunker(SMALL), [], 0, 0, 0
        waiting = list(reversed(borders))
        while arrived < len(data):
            stops = [stop for stop in injected if stop > arrived]
            arrived = min(arrived + feed, len(data), *stops)
            while waiting and waiting[-1] < arrived:
                chunker.suggest(waiting.pop() + shift)
            while length := chunker.scan(data[start:arrived], final=arrived == len(data)):
                start += length
                ends.append(start)
            if arrived in injected:
                if start < arrived:
                    ends.append(arrived)
                start = arrived
                chunker.restart()
                chunker.advance(injected[arrived])
                shift += injected[arrived]
        results.append(ends)
    assert results[0] == results[1]
    assert 700 in results[0] and 21_000 in results[0]
    last = [end - 21_000 for end in results[0] if end > 21_000]
    assert last == reference_payload_cuts(data[21_000:], SMALL, [border - 21_000 for border in borders])


def test_restart_right_after_a_cut() -> None:
    data = random.Random(10).randbytes(20_000)
    plain = first_payload_cut(data, SMALL)
    end = plain + 50
    follower = first_payload_cut(data[end:], SMALL)
    chunker = PayloadChunker(SMALL, SMALL)
    chunker.suggest(end + follower + 5)
    assert chunker.scan(data[:end]) == plain
    chunker.restart()  # the 50 bytes after the cut are a chunk of their own
    assert chunker.scan(data[end:]) == follower + 5


def test_suggestions_that_cannot_count_are_not_kept() -> None:
    chunker = PayloadChunker(65536)
    zeros = np.zeros(200_000, np.uint8)
    for arrived in range(0, 190_000, 16):
        chunker.suggest(arrived)
        assert chunker.scan(zeros[: arrived + 16]) == 0
        assert len(chunker._suggestions) <= 4100
