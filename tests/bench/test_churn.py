"""The simulation of churn: streams that hold together, and what is known of both rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from archiver.backup.reuse import Previous
from bench import churn
from bench.churn import HEADER, KINDS, MIB, RULES, Churn, Contents, Segment, Store, Tree

SMALL = 64 * 1024  # average chunk


def grown_tree(rng: np.random.Generator, contents: Contents, count: int = 1500) -> Tree:
    return churn.new_tree(churn.small_sizes(rng, count) % (4 * SMALL) + HEADER, contents)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_every_reference_points_at_its_contents(rule: str, kind: str) -> None:
    """The same place in the same chunk is never two contents, and an unchanged tree shows as many as it has."""
    rng = np.random.default_rng(3)
    contents = Contents(rng, SMALL)
    tree = grown_tree(rng, contents)
    store = Store(*RULES[rule], contents, SMALL)
    changes = Churn(kind, 0.03, churn.small_sizes, contents, rng)
    meanings: dict[tuple[int, int], int] = {}
    reads = []
    for _ in range(8):
        night = store.backup(tree)
        reads.append(night.read)
        assert store.previous is not None
        starts = store.previous.starts
        assert (np.diff(tree.offsets) >= tree.sizes[:-1]).all()
        assert starts[-1] == night.stream >= tree.offsets[-1] + tree.sizes[-1]
        assert night.stream >= night.kept >= tree.sizes.sum() * 0.99  # equal tiny files may share chunks
        assert len(starts) - 1 == night.entries >= night.distinct
        entry = starts.searchsorted(tree.offsets, "right") - 1
        places = zip(store.previous.numbers[entry].tolist(), (tree.offsets - starts[entry]).tolist(), strict=True)
        for place, content in zip(places, tree.contents.tolist(), strict=True):
            assert meanings.setdefault(place, content) == content
        tree = changes.apply(tree)
    assert 0 < min(reads[1:]) < reads[0]


@pytest.mark.parametrize("rule", RULES)
def test_nothing_changed(rule: str) -> None:
    rng = np.random.default_rng(4)
    contents = Contents(rng, SMALL)
    tree = grown_tree(rng, contents)
    store = Store(*RULES[rule], contents, SMALL)
    first = store.backup(tree)
    assert first.read == first.stored == first.stream == first.kept == tree.sizes.sum()
    for _ in range(3):
        night = store.backup(tree)
        assert (night.read, night.stored, night.stream) == (0, 0, first.stream)


def keep_nothing(tree: Tree, previous: Previous, average: int) -> Iterator[Segment]:
    yield Segment(0, len(tree.sizes))


def test_equal_data_gives_equal_chunks() -> None:
    rng = np.random.default_rng(5)
    contents = Contents(rng, SMALL)
    tree = grown_tree(rng, contents)
    store = Store(keep_nothing, churn.our_cut, contents, SMALL)
    first = store.backup(tree)
    again = store.backup(tree)
    assert (again.read, again.stored, again.entries) == (first.read, 0, first.entries)
    tree.contents[:1] = contents.new(tree.sizes[:1])
    assert 0 < store.backup(tree).stored < first.stored / 10
    grown = tree.sizes.argmax()
    contents.grow(tree.contents[[grown]], tree.sizes[[grown]], tree.sizes[[grown]] + 100 * SMALL)
    tree.sizes[grown] += 100 * SMALL
    assert 100 * SMALL < store.backup(tree).stored < 110 * SMALL


def test_pbs_reads_a_file_again_that_ends_with_its_chunk() -> None:
    """Spec change-detection.md 5.6: of three files of 2 MiB the second changed, the first is read again too."""
    rng = np.random.default_rng(6)
    contents = Contents(rng, 64 * MIB)  # the hash hardly ever passes
    tree = churn.new_tree(np.full(3, 2 * MIB), contents)
    for name, read in (("ours", 1), ("PBS", 2)):
        store = Store(RULES[name][0], churn.pbs_cut, contents, 4 * MIB)
        assert store.backup(tree).entries == 3
        tree.unchanged[1] = False
        assert store.backup(tree).read == read * 2 * MIB


def pbs_segments(files: list[tuple[int, int] | None]) -> list[tuple[bool, list[int], list[int], bool]]:
    """What PBS's rule does with files at these offsets and sizes (None: changed) over two chunks of 1000 bytes."""
    known = np.array([file or (-1, 20) for file in files])
    unchanged = np.array([file is not None for file in files])
    tree = Tree(np.arange(len(files)), known[:, 1], known[:, 0], unchanged, np.zeros(len(files), np.bool_))
    previous = Previous(np.array([0, 1000, 2000]), np.arange(2, dtype=np.uint32), np.ones(2, np.bool_))
    return [
        (False, [], [], False)
        if segment.entries is None or segment.bases is None
        else (True, segment.entries.tolist(), segment.bases.tolist(), segment.joins)
        for segment in churn.pbs_rule(tree, previous, 1000)
    ]


def test_pbs_pads_up_to_a_tenth() -> None:
    assert pbs_segments([(50, 400), (450, 500)]) == [(True, [0], [50, 450], False)]
    assert pbs_segments([(50, 400), (450, 499)]) == [(False, [], [], False)]


def test_pbs_holds_the_last_chunk_for_the_next_range() -> None:
    held = (True, [0], [0], False)
    assert pbs_segments([(0, 950), (960, 1040)]) == [held, (True, [1], [960], True)]
    assert pbs_segments([(0, 950), (960, 20), (985, 15)]) == [held, (True, [], [960], True), (False, [], [], False)]
    assert pbs_segments([(0, 950), None, (960, 1040)]) == [held, (False, [], [], False), (False, [], [], False)]


def test_ours_reads_less_and_stays_bounded() -> None:
    ours, live = churn.simulate("small", "rewritten", "ours", nights=25, files=10_000, rate=0.01, seed=1)
    pbs, same = churn.simulate("small", "rewritten", "PBS", nights=25, files=10_000, rate=0.01, seed=1)
    assert live == same
    assert sum(night.read for night in ours) < sum(night.read for night in pbs) / 5
    assert sum(night.stored for night in ours) < sum(night.stored for night in pbs) / 5
    assert max(night.kept for night in ours) < 1.6 * live[0]
    assert max(night.stream for night in ours) < 20 * live[0]


def test_small_windows_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, live = churn.simulate("small", "mixed", "ours", nights=25, files=10_000, rate=0.01, seed=1)
    monkeypatch.setattr(churn, "WINDOW", 1000)
    parts, _ = churn.simulate("small", "mixed", "ours", nights=25, files=10_000, rate=0.01, seed=1)
    assert whole != parts
    assert sum(night.read for night in parts) < 1.2 * sum(night.read for night in whole)
    assert max(night.kept for night in parts) < 1.6 * live[0]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "churn.json"
    options = ["--nights", "3", "--files", "500", "--kind", "mixed", "moves", "--json", str(document)]
    assert churn.main(options) == 0
    printed = capsys.readouterr().out
    assert "small files, mixed, 1.0% a night: ours" in printed and "large files, moves, 1.0% a night: PBS" in printed
    runs = json.loads(document.read_text())
    assert len(runs) == 2 * 2 * 2
    assert all(len(run["nights"]) == 3 and run["nights"][0]["entries"] > 0 for run in runs)


@pytest.mark.parametrize("option", [["--nights", "0"], ["--rate", "2"], ["--files", "-1"]])
def test_nonsense_is_refused(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        churn.main(option)
    assert "at least 1" in capsys.readouterr().err
