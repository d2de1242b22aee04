"""The comparison of cut windows: its model cuts as the chunker does, and counts what really is stored again."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bench import cuts, datasets
from bench.cuts import DENSITIES, FILE_EDITS, TREE_EDITS, WINDOWS, Ints, Rule, Segment, Stream
from formats.chunker import PayloadChunker

pytestmark = pytest.mark.in_memory

AVERAGE = 64 * 1024


def scanned(data: bytes, borders: Ints, piece: int = 1 << 20) -> Stream:
    size, passes = cuts.scan((data[at : at + piece] for at in range(0, len(data), piece)), AVERAGE)
    return Stream(size, passes, borders)


def files(seed: int, length: int, largest: int) -> tuple[bytes, Ints]:
    """Random bytes and holes, and where files of up to ``largest`` bytes begin."""
    rng = random.Random(seed)
    data = b"".join(rng.choice((rng.randbytes(100_000), bytes(30_000))) for _ in range(length // 60_000))
    borders = [0]
    while borders[-1] + largest < len(data):
        borders.append(borders[-1] + rng.randint(16, largest))
    return data, np.array(borders)


def chunked(data: bytes, borders: Ints) -> list[int]:
    chunker = PayloadChunker(AVERAGE)
    for border in borders.tolist():
        chunker.suggest(border)
    view, ends = memoryview(data), [0]
    while length := chunker.scan(view[ends[-1] :], final=True):
        ends.append(ends[-1] + length)
    return ends


@pytest.mark.parametrize("largest", [3000, 200_000, 5_000_000])
def test_the_model_cuts_as_the_chunker(largest: int) -> None:
    data, borders = files(largest, 4_000_000, largest)
    assert cuts.cut(scanned(data, borders), cuts.CURRENT, AVERAGE).tolist() == chunked(data, borders)


def test_passes_do_not_depend_on_how_the_data_arrives() -> None:
    data, borders = files(2, 3_000_000, 10_000)
    whole, parts = scanned(data, borders), scanned(data, borders, piece=999)
    assert whole.size == parts.size == len(data)
    for density in DENSITIES:
        assert whole.passes[density].tolist() == parts.passes[density].tolist()
    assert [set(whole.passes[a]) < set(whole.passes[b]) for a, b in pairwise(DENSITIES)] == [True] * 3


@pytest.mark.parametrize("name", [*FILE_EDITS, "add", "delete file", "rewrite", "rename"])
def test_what_is_stored_again(name: str) -> None:
    """Counted by the model, and by looking at the chunks of real data."""
    edit = FILE_EDITS.get(name) or TREE_EDITS[name.split()[0]]
    data, borders = files(3, 30_000_000, 50_000)
    stream, rng = scanned(data, borders), np.random.default_rng(4)
    old = cuts.cut(stream, cuts.CURRENT, AVERAGE)
    had = {hashlib.sha256(data[a:b]).digest() for a, b in pairwise(old.tolist())}
    for _ in range(3):
        segments = edit(stream, rng)
        parts = [
            data[s.source : s.source + s.length] if s.source is not None else rng.bytes(s.length) for s in segments
        ]
        changed = b"".join(parts)
        borders_now = cuts.edited(stream, segments, AVERAGE, rng).borders
        now = cuts.cut(scanned(changed, borders_now), cuts.CURRENT, AVERAGE)
        new = sum(b - a for a, b in pairwise(now.tolist()) if hashlib.sha256(changed[a:b]).digest() not in had)
        old_bytes = new - sum(s.length for s in segments if s.source is None)
        assert cuts.stored_again(old, now, segments) == pytest.approx(old_bytes, abs=2 * 64)
        assert old_bytes < len(data) / 2


def test_an_edited_stream_passes_where_its_bytes_do() -> None:
    data, borders = files(5, 30_000_000, 20_000)
    stream = scanned(data, borders)
    segments = [Segment(0, 7_000_000), Segment(20_000_000, 3_000_000), Segment(9_000_000, 10_000_000)]
    moved = b"".join(data[s.source : s.source + s.length] for s in segments if s.source is not None)
    found = cuts.edited(stream, segments, AVERAGE, np.random.default_rng(1))
    assert found.size == len(moved)
    for density, where in scanned(moved, borders).passes.items():
        joints = {7_000_000, 10_000_000}
        inside = [at for at in where.tolist() if all(not joint < at <= joint + 64 for joint in joints)]
        assert found.passes[density].tolist() == inside
    starts = np.flatnonzero((borders >= 20_000_000) & (borders < 23_000_000)).size
    assert np.flatnonzero((found.borders >= 7_000_000) & (found.borders < 10_000_000)).size == starts


def test_random_bytes_pass_as_often_as_the_hash() -> None:
    drawn = cuts.random_stream(64 << 20, AVERAGE, np.random.default_rng(1))
    real = scanned(random.Random(1).randbytes(16 << 20), drawn.borders)
    for density in DENSITIES:
        assert drawn.passes[density].size == pytest.approx(4 * real.passes[density].size, rel=0.2)


def test_share_that_is_hashed() -> None:
    stream = Stream(1000, {1: np.array([300, 500, 980])}, np.zeros(1, np.int64))
    rule = Rule(4, 1, 1)
    ends = cuts.cut(stream, rule, 200)
    assert ends.tolist() == [0, 300, 500, 980, 1000]
    assert cuts.hashed(ends, rule, stream, 200) == (200 + 100 + 380) / 1000


def test_tree_stream_has_a_border_for_each_file(tmp_path: Path) -> None:
    tree = datasets.tiny(tmp_path, 150)
    stream = cuts.tree_stream(tree.root, AVERAGE)
    assert stream.borders.size == 150 and stream.borders[0] == 0
    assert stream.size == tree.size + 150 * cuts.HEADER - (tree.size - sum(p.stat().st_size for p in _files(tree.root)))


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "a").write_bytes(datasets.ELF + random.Random(1).randbytes(30_000_000))
    monkeypatch.setattr(datasets, "PROGRAM_DIRECTORIES", [programs])
    monkeypatch.setattr(cuts, "RANDOM_BYTES", 40_000_000)
    monkeypatch.setattr(cuts, "SPEED_BYTES", 100_000)
    tree = datasets.tiny(tmp_path, 500).root
    assert cuts.main(["--average", "4", "--trials", "2", "--tree", str(tree)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.split()[1:2] == [f"x{cuts.CURRENT.density}"]]) >= 3
    assert len([line for line in lines if "/8 x" in line]) == len(WINDOWS) * (2 + len(cuts.REACHES))
    assert len([line for line in lines if line.endswith("*")]) == 3


@pytest.mark.parametrize("option", [["--average", "3"], ["--average", "0"], ["--trials", "0"]])
def test_nonsense_is_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cuts.main(option)
    assert "at least 1" in capsys.readouterr().err
