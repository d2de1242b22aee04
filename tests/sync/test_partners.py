"""Which store is at the target's place: a drive that is not mounted, another drive, a copy of the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from archiver.core.events import ignore
from archiver.errors import Damaged, NotFound, TargetAbsent, UsageError
from archiver.store.store import Store
from archiver.sync.partners import open_target, remember
from tests.stores import damage, make_store
from tests.sync.pair import Pair

pytestmark = pytest.mark.in_memory


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair.make(tmp_path, snapshots=1)


def opened(pair: Pair, *, new_target: bool = False) -> str:
    """The uuid of the store that is accepted."""
    with (
        Store.open(pair.source) as ours,
        open_target(ours, str(pair.target), ignore, new_target=new_target) as theirs,
    ):
        remember(ours, theirs)
        return str(theirs.uuid)


def test_not_mounted(pair: Pair) -> None:
    """Only an empty mount point is there: no store is made in it."""
    pair.target.rename(pair.target.with_name("drive"))
    pair.target.mkdir()
    with pytest.raises(NotFound):
        opened(pair)  # never synced to
    pair.target.rmdir()
    with pytest.raises(TargetAbsent):
        opened(pair)
    pair.target.with_name("drive").rename(pair.target)
    opened(pair)
    pair.target.rename(pair.target.with_name("drive"))
    pair.target.mkdir()
    for new_target in (False, True):
        with pytest.raises(TargetAbsent):
            opened(pair, new_target=new_target)
    assert list(pair.target.iterdir()) == []


def test_another_drive(pair: Pair) -> None:
    """Once accepted, drives may take turns."""
    first = opened(pair)
    pair.target.rename(pair.target.with_name("first"))
    make_store(pair.target)
    with pytest.raises(UsageError, match="another one"):
        opened(pair)
    second = opened(pair, new_target=True)
    assert first != second == opened(pair)
    shutil.rmtree(pair.target)
    pair.target.with_name("first").rename(pair.target)
    assert opened(pair) == first
    known = json.loads((pair.source / ".archiver/sync-targets.json").read_text())
    assert known == {"schema": 1, "targets": {str(pair.target): [first, second]}}


def test_a_link_to_the_same_place(pair: Pair, tmp_path: Path) -> None:
    opened(pair)
    other = tmp_path / "link"
    other.symlink_to(pair.target)
    shutil.rmtree(pair.target)
    make_store(pair.target)
    with pytest.raises(UsageError, match="another one"):
        opened(Pair(pair.source, other, pair.tree))


def test_the_same_store_and_a_copy(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="same store"):
        opened(Pair(pair.source, pair.source, pair.tree))
    copy = Pair(pair.source, tmp_path / "copy", pair.tree)
    shutil.copytree(pair.source, copy.target)
    with pytest.raises(UsageError, match="copy") as raised:
        opened(copy)
    assert raised.value.hint is not None and "init --new-uuid" in raised.value.hint
    before = Store.renew(copy.target)
    assert opened(copy) == str(before.uuid)
    assert before.name == "test"
    assert copy.sync().errors == [] and copy.lacking() == {} and damage(copy.target) == []
    with Store.open(copy.target) as store:
        assert store.database is not None and store.database.check() == []


def test_new_uuid_of_a_store_in_use(pair: Pair) -> None:
    with Store.open(pair.target) as store, store.session(), pytest.raises(Exception, match="in use"):
        Store.renew(pair.target)


def test_damaged_record(pair: Pair) -> None:
    opened(pair)
    for text in ("", "[]", "{}", '{"targets": {"/x": 5}}', '{"targets": {"/x": ["no"]}}', "[" * 50000):
        (pair.source / ".archiver/sync-targets.json").write_text(text)
        with pytest.raises(Damaged):
            opened(pair)
