"""The reuse planner: against its definition in plain loops, and with the bytes of the streams put together."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver.backup import reuse
from archiver.backup.reuse import FILE_COST, Bools, Ints, Previous, injections, plan, runs
from tests.golden_data import GOLDEN

pytestmark = pytest.mark.in_memory

AVERAGE = 256  # of the small worlds here: pieces save at least 16 bytes, chunks below 8 are tiny
GARBAGE = (-1, -(2**63), 2**63 - 1, 0, 7)
INJECT: list[dict[str, Any]] = json.loads((GOLDEN / "payload-chunker.json").read_text())["inject"]


@dataclass
class World:
    """A previous stream, and a window of files of which some lie in it."""

    previous: Previous
    stream: bytes
    offsets: Ints
    sizes: Ints
    reusable: Bools
    injected: int

    def plan(self) -> Bools:
        return plan(self.offsets, self.sizes, self.reusable, self.previous, AVERAGE, self.injected)


def index_of(sizes: list[int], numbers: list[int] | None = None, unusable: tuple[int, ...] = ()) -> Previous:
    starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    row = np.arange(len(sizes)) if numbers is None else np.array(numbers)
    usable = np.ones(len(sizes), np.bool_)
    usable[list(unusable)] = False
    return Previous(starts, row.astype(np.uint32), usable)


def keeps(previous: Previous, files: list[tuple[int, int] | None], average: int = AVERAGE) -> list[bool]:
    """``plan`` for files given as (offset, size); None: a file that changed."""
    known = [file or (-1, 20) for file in files]
    offsets, sizes = (np.array(column, np.int64) for column in zip(*known, strict=True))
    keep: list[bool] = plan(offsets, sizes, np.array([f is not None for f in files]), previous, average).tolist()
    return keep


@st.composite
def worlds(draw: st.DrawFn) -> World:
    rng = random.Random(draw(st.integers(0, 2**32)))
    most = draw(st.sampled_from([6, 60, 600]))
    chunks = [rng.randbytes(rng.randint(1, most)) for _ in range(draw(st.integers(1, 8)))]
    row = list(range(len(chunks))) + draw(st.lists(st.integers(0, len(chunks) - 1), max_size=6))
    rng.shuffle(row)
    stream = b"".join(chunks[i] for i in row)
    largest = draw(st.sampled_from([3, 30, 300, 3000]))
    files: list[tuple[int, int, bool]] = []
    position = rng.randint(0, 50)
    while position < len(stream) and len(files) < 25:
        size = rng.randint(1, min(largest, len(stream) - position))
        files.append((position, size, True))
        position += size + rng.choice([0, 0, 0, rng.randint(0, largest)])
    for _ in range(draw(st.integers(0, 4))):  # what happened since
        change, place = rng.choice(["rewritten", "removed", "moved", "copied"]), rng.randrange(len(files) or 1)
        if change == "rewritten" and files:
            files[place] = (rng.choice(GARBAGE), rng.randint(1, largest), False)
        elif change == "removed":
            del files[place : place + rng.randint(1, 3)]
        elif change == "moved":
            part = files[place : place + rng.randint(1, 5)]
            del files[place : place + len(part)]
            files[(at := rng.randint(0, len(files))) : at] = part
        elif files:
            files.insert(rng.randint(0, len(files)), files[place])
    first = draw(st.integers(0, 3))
    files = files[first : first + draw(st.integers(0, 25))]  # a window of the archive
    previous = index_of([len(chunks[i]) for i in row], row)
    if draw(st.booleans()):
        previous.usable[draw(st.integers(0, len(row) - 1))] = False
    columns = list(zip(*files, strict=True)) or [(), (), ()]
    return World(
        previous,
        stream,
        np.array(columns[0], np.int64),
        np.array(columns[1], np.int64),
        np.array(columns[2], np.bool_),
        draw(st.integers(-1, len(row) - 1)),
    )


def entries_of(world: World, i: int) -> list[int]:
    starts, offset, end = world.previous.starts.tolist(), world.offsets[i], world.offsets[i] + world.sizes[i]
    return [j for j in range(len(starts) - 1) if starts[j] < end and offset < starts[j + 1]]


def overlap(world: World, i: int, entry: int) -> int:
    starts, offset, end = world.previous.starts, world.offsets[i], world.offsets[i] + world.sizes[i]
    return int(min(end, starts[entry + 1]) - max(offset, starts[entry]))


def is_bad(world: World, keep: list[int], i: int) -> bool:
    """Whether file ``i`` is to be given up when ``keep`` are the files kept."""
    previous, size = world.previous, np.diff(world.previous.starts).tolist()
    known = [k for k in range(len(world.offsets)) if world.reusable[k]]
    low = min(int(world.offsets[k]) for k in known)
    high = max(int(world.offsets[k] + world.sizes[k]) for k in known)
    run = {i}
    for step in (1, -1):
        k = i
        while k + step in keep:
            one, two = sorted((k, k + step))
            if world.offsets[two] < world.offsets[one] + world.sizes[one]:
                break
            k += step
            run.add(k)
    ends = {entries_of(world, i)[0], entries_of(world, i)[-1]}
    for entry in ends:
        inside = sum(overlap(world, k, entry) for k in run if entry in entries_of(world, k))
        piece = [k for k in run if entry in (entries_of(world, k)[0], entries_of(world, k)[-1])]
        saved = sum(int(world.sizes[k]) + FILE_COST * AVERAGE for k in piece)
        beside = {min(piece) - 1, max(piece) + 1} & set(range(len(world.offsets)))
        is_whole = inside >= 0.9 * size[entry] and (size[entry] >= AVERAGE / 32 or beside <= set(keep))
        last = len(world.offsets) - 1
        goes_on = (
            last in piece
            and entry == entries_of(world, last)[-1]
            and world.offsets[last] + world.sizes[last] < previous.starts[entry + 1]
        ) or (0 in piece and entry == entries_of(world, 0)[0] == world.injected)
        if saved < AVERAGE / 16 and not is_whole and not goes_on:
            return True
        live = 0.0
        for j in range(len(size)):
            if previous.numbers[j] != previous.numbers[entry]:
                continue
            live += sum(1 for byte in range(previous.starts[j], previous.starts[j + 1]) if not low <= byte < high)
            for k in keep:
                its = entries_of(world, k)
                if j in (its[0], its[-1]):
                    live += overlap(world, k, j) + sum(overlap(world, k, middle) for middle in its[1:-1]) / 2
        if live < 0.5 * size[entry]:
            return True
    return False


def plan_slowly(world: World) -> list[bool]:
    """One file after the other is given up; the order makes no difference."""
    keep = [
        i
        for i in range(len(world.offsets))
        if world.reusable[i] and all(world.previous.usable[j] for j in entries_of(world, i))
    ]
    while bad := [i for i in keep if is_bad(world, keep, i)]:
        keep.remove(bad[0])
    return [i in keep for i in range(len(world.offsets))]


@settings(deadline=None, max_examples=300)
@given(worlds())
def test_the_plan_is_its_definition(world: World) -> None:
    assert world.plan().tolist() == plan_slowly(world)


@settings(deadline=None, max_examples=300)
@given(worlds(), st.data())
def test_references_point_at_the_right_bytes(world: World, data: st.DataObject) -> None:
    keep = world.plan()
    assert not (keep & ~world.reusable).any()
    if data.draw(st.booleans()):  # what is said about runs and injections holds for any choice
        keep = world.reusable & np.array(
            data.draw(st.lists(st.booleans(), min_size=len(keep), max_size=len(keep))), bool
        )
    else:
        used = {j for i in np.flatnonzero(keep) for j in entries_of(world, int(i))}
        assert all(world.previous.usable[j] for j in used)
    starts = world.previous.starts
    new, places, done = bytearray(b"start marker"), np.full(len(keep), -1), 0
    for start, stop in [*runs(keep, world.offsets, world.sizes), (len(keep), len(keep))]:
        for i in range(done, start):
            assert not keep[i]
            places[i] = len(new)
            new += b"?" * int(world.sizes[i])
        done = stop
        if start == stop:
            break
        assert keep[start:stop].all()
        entries, bases = injections(world.offsets[start:stop], world.sizes[start:stop], world.previous)
        assert entries.tolist() == sorted({j for i in range(start, stop) for j in entries_of(world, i)})
        places[start:stop] = len(new) + bases
        for j in entries:
            new += world.stream[starts[j] : starts[j + 1]]
    assert (np.diff(places) > 0).all()
    for place, offset, size in zip(places[keep], world.offsets[keep], world.sizes[keep], strict=True):
        assert new[place : place + size] == world.stream[offset : offset + size]


@pytest.mark.parametrize("case", INJECT, ids=lambda case: f"{case['desc']}-{case['feed']}")
def test_golden_injections(case: dict[str, Any]) -> None:
    """A file in each injected chunk, encoded data cut where the original cut it: the same offsets in the same order."""
    pieces = [piece for piece in case["result"] if piece["len"]]
    injected = [piece["len"] for piece in pieces if piece["kind"] == "injected"]
    previous = index_of(injected)
    sizes = np.array([piece["len"] for piece in pieces], np.int64)
    keep = np.array([piece["kind"] == "injected" for piece in pieces])
    offsets = np.full(len(pieces), -1)
    offsets[keep] = previous.starts[:-1]
    order, ends, position = [], [], 0
    for start, stop in runs(keep, offsets, sizes):
        position = pieces[start - 1]["end"] if start else 0
        entries, bases = injections(offsets[start:stop], sizes[start:stop], previous)
        order += entries.tolist()
        ends += (position + bases + sizes[start:stop]).tolist()
    assert order == list(range(len(injected)))
    assert ends == [piece["end"] for piece in pieces if piece["kind"] == "injected"]
    shifted = sum(size for boundary, size in case["injections"])
    assert pieces[-1]["end"] == case["data"]["len"] + shifted


def test_a_window_without_anything_to_reuse() -> None:
    nothing = np.zeros(0, np.int64)
    assert plan(nothing, nothing, nothing.astype(bool), index_of([10]), AVERAGE).shape == (0,)
    assert keeps(index_of([10]), [None, None]) == [False, False]
    assert runs(np.zeros(3, np.bool_), np.zeros(3, np.int64), np.ones(3, np.int64)) == []


@pytest.mark.parametrize("offset", [-1, -(2**63), 101, 1000, 2**63 - 1])
def test_a_place_outside_of_the_stream_is_never_referenced(offset: int) -> None:
    assert keeps(index_of([200]), [(0, 100), (offset, 100)]) == [True, False]


def test_a_file_that_ends_with_its_chunk_needs_no_further_one() -> None:
    previous = index_of([100, 100, 100], unusable=(0, 2))
    assert keeps(previous, [(100, 100)]) == [True]
    entries, bases = injections(np.array([100]), np.array([100]), previous)
    assert (entries.tolist(), bases.tolist()) == ([1], [0])


def test_entries_without_files_are_not_injected() -> None:
    entries, bases = injections(np.array([50, 950]), np.array([60, 10]), index_of([100] * 10))
    assert (entries.tolist(), bases.tolist()) == ([0, 1, 9], [50, 250])


def test_one_missing_chunk_gives_up_only_the_files_in_it() -> None:
    files: list[tuple[int, int] | None] = [(0, 50), (50, 40), (90, 320), (410, 90), (500, 100)]
    assert keeps(index_of([100] * 6, unusable=(2,)), files) == [True, True, False, True, True]


def test_bytes_outside_of_the_window_are_not_dead() -> None:
    previous = index_of([300, 300])
    assert keeps(previous, [(200, 100), (300, 100)]) == [True, True]
    # The same, but the window saw where the rest went: it is gone.
    assert keeps(previous, [(0, 1), (200, 100), (300, 100), (599, 1)]) == [False] * 4
    # A copy of the chunk elsewhere may be in use.
    assert keeps(index_of([300, 300, 300], [7, 8, 7]), [(0, 1), (200, 100), (300, 300)]) == [True] * 3


def test_live_bytes_are_counted_over_all_copies_of_a_chunk() -> None:
    files: list[tuple[int, int] | None] = [(0, 80), None, (400, 80), (600, 300)]
    assert keeps(index_of([300, 300, 300], [5, 5, 6]), files) == [True, False, True, True]
    assert keeps(index_of([300, 300, 300], [4, 5, 6]), files) == [False, False, False, True]


def test_a_large_file_is_not_read_again_for_its_tail() -> None:
    files: list[tuple[int, int] | None] = [(0, 200), (200, 1010), (1510, 300)]
    assert keeps(index_of([300] * 7), files) == [True, True, True]
    files[1] = (200, 120)  # that one is small, and little else is in its second chunk
    assert keeps(index_of([300] * 7), files) == [True, False, True]


def test_tiny_chunks_are_merged_with_what_is_encoded_beside_them() -> None:
    assert keeps(index_of([100, 3, 100]), [(0, 100), (100, 3), None, (103, 100)]) == [True, False, False, True]
    assert keeps(index_of([100, 3, 100]), [(0, 100), None, (100, 3), (103, 100)]) == [True, False, False, True]
    assert keeps(index_of([100, 3, 100]), [(0, 100), (100, 3), (103, 100)]) == [True, True, True]
    assert keeps(index_of([3]), [(0, 3)]) == [True]
    assert keeps(index_of([100, 8, 100]), [(0, 100), (100, 8), None, (108, 100)]) == [True, True, False, True]


def test_small_pieces_between_changes_are_given_up() -> None:
    previous = index_of([200])
    assert keeps(previous, [(0, 160), None, (162, 15), None, (180, 16)]) == [True, False, False, False, True]
    assert keeps(previous, [(0, 160), None, (164, 8), (174, 5), (182, 3)]) == [True, False, True, True, True]


def test_moved_files_are_kept_in_runs_of_their_own() -> None:
    previous = index_of([100] * 4)
    offsets, sizes = np.array([200, 250, 300, 0, 100]), np.array([50, 50, 100, 100, 100])
    assert keeps(previous, list(zip(offsets.tolist(), sizes.tolist(), strict=True))) == [True] * 5
    assert runs(np.ones(5, np.bool_), offsets, sizes) == [(0, 3), (3, 5)]


def test_two_names_of_the_same_bytes_are_two_injections() -> None:
    offsets, sizes = np.array([0, 0]), np.array([100, 100])
    assert keeps(index_of([100]), [(0, 100), (0, 100)]) == [True, True]
    assert runs(np.ones(2, np.bool_), offsets, sizes) == [(0, 1), (1, 2)]


def test_offsets_beyond_32_bits() -> None:
    large = 1 << 40
    previous = index_of([large, 100, large])
    assert keeps(previous, [(0, large), (large, 100), (large + 100, large)], 64) == [True] * 3
    entries, bases = injections(np.array([large, large + 100]), np.array([100, large]), previous)
    assert (entries.tolist(), bases.tolist()) == ([1, 2], [0, 100])


def calls_to_plan(files: int) -> int:
    """Calls of functions, of Python and of C, that a plan with some changes takes."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(16, 20_000, files)
    offsets = np.cumsum(sizes) - sizes
    starts = np.unique(np.append(np.arange(0, int(sizes.sum()), 1 << 18), sizes.sum()))
    count = len(starts) - 1
    previous = Previous(starts, np.arange(count, dtype=np.uint32), np.ones(count, np.bool_))
    seen = 0

    def count_call(frame: FrameType, event: str, argument: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        keep = plan(offsets, sizes, rng.random(files) > 0.03, previous, 1 << 18)
    finally:
        sys.setprofile(None)
    assert 0.5 < keep.mean() < 0.99
    return seen


def test_no_python_loop_over_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "_MOST_ROUNDS", 1)
    assert calls_to_plan(65_536) == calls_to_plan(4096)
