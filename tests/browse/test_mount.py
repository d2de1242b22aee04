"""Snapshots seen through FUSE are what a restore gives, and what was saved."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from archiver.store.layout import GroupRef
from tests.compare import NOT_KEPT, Description, compare_descriptions, differences, snapshot_tree
from tests.mounting import mounted
from tests.random_trees import build_plain
from tests.stores import KEY, bring_back, make_store, save
from tests.trees import build_features, unlock_tree

MODES = ("metadata", "legacy")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """A store with the tree that has everything, in each mode; the tree; the snapshots by mode."""
    base = tmp_path_factory.mktemp("features")
    tree = base / "tree"
    build_features(tree, as_root=os.geteuid() == 0)
    store = make_store(base / "store")
    found = {}
    for number, mode in enumerate(MODES):
        group = GroupRef("", "host", mode)
        found[mode] = str(save(store, tree, group=group, mode=mode, time=1_700_000_000 + number).snapshot)  # type: ignore[arg-type]
    yield store, tree, found  # type: ignore[misc]
    unlock_tree(tree)


@pytest.mark.parametrize("mode", MODES)
def test_everything_is_there(features: tuple[Path, Path, dict[str, str]], tmp_path: Path, mode: str) -> None:
    """By an independent walk; the tree was restored as well, elsewhere it is compared with the same source."""
    store, tree, found = features
    with mounted(tmp_path / "mnt", "--store", store, "mount", found[mode], "--archive", "tree.pxar") as mount:
        assert differences(tree, mount.place, ignore=NOT_KEPT - {"nodump"}) == []


def test_as_restored(features: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    """A restored tree, and the same snapshot in the whole store."""
    store, _, found = features
    from archiver.store.layout import SnapshotRef, parse_reference

    ref = parse_reference(found["metadata"])
    assert isinstance(ref, SnapshotRef)
    bring_back(store, ref, tmp_path / "out", verify=False)
    with mounted(tmp_path / "mnt", "--store", store, "mount") as mount:
        assert differences(tmp_path / "out", mount.place / found["metadata"] / "tree.pxar") == []
        assert os.readlink(mount.place / "host/metadata/latest") == found["metadata"].rsplit("/", 1)[1]
    unlock_tree(tmp_path / "out")
