"""Whole file trees: the features at full size, and what lies on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from tests.attributes import remove_tree
from tests.compare import differences
from tests.random_trees import build_plain, mutate
from tests.source.sandbox import IS_ROOT, NOBODY, as_ordinary_user, world_readable_directory
from tests.stores import KEY, bring_back, make_store, save
from tests.trees import build_features

DEFAULT_CHUNK = 4 << 20
SLACK = 64 << 10
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_features_at_full_size(tmp_path: Path, mode: Mode) -> None:
    """A sparse file of 5 GiB, 20,000 entries in a directory, paths of 4,000 bytes."""
    try:
        build_features(tmp_path / "tree", as_root=IS_ROOT, huge=True)
        store = make_store(tmp_path / "store")
        saved = save(store, tmp_path / "tree", mode=mode, chunk_size=DEFAULT_CHUNK)
        assert saved.problems == []
        assert bring_back(store, saved.snapshot, tmp_path / "out").problems == []
        assert differences(tmp_path / "tree", tmp_path / "out", sparse_slack=SLACK) == []
    finally:
        for name in ("tree", "out"):
            if (tmp_path / name).exists():
                remove_tree(tmp_path / name)


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("mode", ["data", "legacy"])
@pytest.mark.parametrize("source", ["/usr/share", "/usr/lib"])
def test_real_trees(tmp_path: Path, source: str, mode: Mode) -> None:
    store = make_store(tmp_path / "store")
    saved = save(store, Path(source), mode=mode, crypt=KEY, chunk_size=DEFAULT_CHUNK)
    assert saved.result.errors == []
    assert bring_back(store, saved.snapshot, tmp_path / "out", crypt=KEY).problems == []
    assert differences(Path(source), tmp_path / "out", sparse_slack=SLACK) == []
    shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
@needs_root
def test_a_home_directory(tmp_path: Path) -> None:
    """An ordinary user's own files, some thousands, over several days."""
    with world_readable_directory() as place:
        os.chown(place, NOBODY, NOBODY)

        def work() -> list[str]:
            home, store = place / "home", make_store(place / "store")
            build_plain(home, 77, files=4000, max_size=100_000)
            found: list[str] = []
            for day in range(4):
                out = place / f"out-{day}"
                saved = save(store, home, crypt=KEY, chunk_size=DEFAULT_CHUNK)
                assert saved.problems == []
                assert bring_back(store, saved.snapshot, out, crypt=KEY).problems == []
                found += differences(home, out)
                mutate(home, day, changes=110)
            return found

        assert as_ordinary_user(work) == []
