"""What is backed up comes back: every kind of entry and attribute, in every mode, for root and for anybody else."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from archiver.restore.run import RestoreResult
from formats.crypt import CryptConfig
from tests.attributes import remove_tree, unlock_tree
from tests.compare import NOT_KEPT, compare_descriptions, differences, snapshot_tree
from tests.source.sandbox import IS_ROOT, NOBODY, as_ordinary_user, world_readable_directory
from tests.stores import CHUNK_SIZE, KEY, bring_back, make_store, save
from tests.trees import build_features

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root to become another user")
SLACK = 64 << 10  # smaller files are restored without holes


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory whose content is deleted at the end, immutable entries included."""
    yield tmp_path
    unlock_tree(tmp_path)
    for path in tmp_path.iterdir():
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("features") / "tree"
    build_features(root, as_root=IS_ROOT)
    yield root
    remove_tree(root)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory of nobody's, deleted like ``place``."""
    with world_readable_directory() as path:
        os.chown(path, NOBODY, NOBODY)
        yield path
        unlock_tree(path)


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_features(features: Path, place: Path, mode: Mode, crypt: CryptConfig | None) -> None:
    store = make_store(place / "store")
    before = snapshot_tree(features, content=False)
    saved = save(store, features, mode=mode, crypt=crypt)
    assert saved.problems == []
    assert compare_descriptions(before, snapshot_tree(features, content=False), ignore=()) == []
    result = bring_back(store, saved.snapshot, place / "out", crypt=crypt)
    assert result.problems == []
    assert differences(features, place / "out", sparse_slack=SLACK) == []
    assert result.entries == len(before)
    assert saved.result.files.total == sum(stat.S_ISREG(entry["mode"]) for entry in before.values())


def test_again_from_the_restored_tree(features: Path, place: Path) -> None:
    """A restored tree is so equal to its source that its backup has no new contents."""
    store = make_store(place / "store")
    first = save(store, features)
    bring_back(store, first.snapshot, place / "out", verify=False)
    again = save(store, place / "out")
    (one,), (other,) = first.result.archives, again.result.archives
    assert other.counters.size == one.counters.size
    assert other.counters.new_bytes < 9 * CHUNK_SIZE, "nodump is not restored: entries differ, contents never"


@needs_root
def test_own_files_of_an_ordinary_user(open_place: Path) -> None:
    """Somebody without privileges loses nothing of what is their own."""
    source, out = open_place / "source", open_place / "out"

    def work() -> tuple[list[object], RestoreResult]:
        build_features(source, as_root=False)
        store = make_store(open_place / "store")
        saved = save(store, source, crypt=KEY)
        return list(saved.problems), bring_back(store, saved.snapshot, out, crypt=KEY)

    problems, result = as_ordinary_user(work)
    assert problems == []
    assert result.kinds == {}
    assert differences(source, out, sparse_slack=SLACK) == []


@needs_root
def test_files_of_root_for_an_ordinary_user(features: Path, open_place: Path) -> None:
    """What may not be restored is named; everything else is as it was."""
    store, out = make_store(open_place / "store"), open_place / "out"
    ref = save(store, features).snapshot
    for path in (store, *store.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    result: RestoreResult = as_ordinary_user(lambda: bring_back(store, ref, out))
    assert result.kinds.keys() == {"attribute", "not-restored"}
    assert result.problem_count == len(result.problems)
    told = {problem.path.lstrip(b"/") or b"." for problem in result.problems}
    described = {bytes.fromhex(path): entry for path, entry in snapshot_tree(features, content=False).items()}
    told |= {path for path, entry in described.items() if entry["link"] and bytes.fromhex(entry["link"]) in told}
    named = tuple(repr(path)[1:] + ": " for path in told)
    missing = {problem.path.lstrip(b"/") for problem in result.problems if problem.kind == "not-restored"}
    devices = {
        path
        for path, entry in described.items()
        if entry["rdev"] is not None and not (entry["rdev"] == [0, 0] and stat.S_ISCHR(entry["mode"]))  # anybody's
    }
    assert missing == devices
    unequal = differences(features, out, sparse_slack=SLACK)
    assert [line for line in unequal if not line.startswith(named)] == []
    kinds = {line.split(": ")[1].split(":")[0] for line in unequal} - {"only in the first tree"}
    assert kinds <= {"uid", "gid", "mode", "xattr", "flags"}, kinds
    mine = NOT_KEPT | {"uid", "gid", "flags", "xattr:trusted.secret", "xattr:trusted.empty"}
    rest = differences(features, out, ignore=mine | {"xattr:security.capability"})
    for line in rest:
        if ": only in the first" not in line:
            assert _lost_only_set_ids(line), line


def _lost_only_set_ids(line: str) -> bool:
    """A program of somebody else's must not run with the rights of who restores."""
    _, field, values = line.rsplit(": ", 2)
    ours, theirs = (int(value, 8) for value in values.split(" != "))
    return field == "mode" and ours & ~0o6000 == theirs
