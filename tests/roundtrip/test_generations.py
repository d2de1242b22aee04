"""Every snapshot of a tree that goes on changing restores to the state of its own time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from formats.crypt import CryptConfig
from tests.compare import differences
from tests.random_trees import build_plain, mutate
from tests.stores import KEY, bring_back, make_store, save


@pytest.mark.parametrize(
    ("seed", "mode", "crypt"), [(1, "data", None), (2, "legacy", KEY), (3, "data", KEY), (4, "legacy", None)]
)
def test_generations(tmp_path: Path, seed: int, mode: Mode, crypt: CryptConfig | None) -> None:
    _generations(tmp_path, seed, mode, crypt, files=80, generations=4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_generations(tmp_path: Path, seed: int) -> None:
    mode: Mode = "legacy" if seed % 2 else "data"
    _generations(tmp_path, seed, mode, KEY if seed % 3 else None, files=50 * (seed % 7), generations=8)


def _generations(
    place: Path, seed: int, mode: Mode, crypt: CryptConfig | None, *, files: int, generations: int
) -> None:
    store, tree = make_store(place / "store"), place / "tree"
    build_plain(tree, seed, files, max_size=300_000)
    states: list[tuple[Path, object]] = []
    for number in range(generations):
        kept = place / f"state-{number}"
        shutil.copytree(tree, kept, symlinks=True)
        saved = save(store, tree, mode=mode, crypt=crypt)
        assert saved.problems == []
        states.append((kept, saved.snapshot))
        mutate(tree, seed * 1000 + number, changes=22)
    for number, (kept, ref) in enumerate(states):
        out = place / f"out-{number}"
        assert bring_back(store, ref, out, crypt=crypt).problems == []  # type: ignore[arg-type]
        assert differences(kept, out) == []
    assert len({str(ref) for _, ref in states}) == generations
