"""What a sync decides to do: the rules of spec datastore.md 11, namespaces, filters, removal and its guard."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from archiver.core.events import ignore
from archiver.errors import NotFound, Skipped, UsageError
from archiver.store import namespaces
from archiver.store.labels import protect, set_owner
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.removal import plan_forget, plan_forget_groups, remove
from archiver.store.store import Store
from archiver.sync.filters import GroupFilter, chosen
from archiver.sync.plan import SyncOptions, make_plan
from archiver.sync.run import carry_out
from tests import golden_store
from tests.stores import KEY, damage, every_snapshot, make_store, save
from tests.sync.pair import START, Pair, finished
from tests.sync.test_copy import set_state

pytestmark = pytest.mark.in_memory


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair.make(tmp_path, snapshots=4)


def forget(path: Path, *refs: SnapshotRef) -> None:
    with Store.open(path) as store:
        assert len(remove(store, plan_forget(store, [str(ref) for ref in refs])).removed) == len(refs)


def actions(pair: Pair, **options: object) -> list[str]:
    return [step.action for step in pair.plan(**options).steps]


# -- which snapshots -------------------------------------------------------------------------------------------------


def test_gaps_are_not_filled(pair: Pair) -> None:
    pair.sync()
    forget(pair.target, pair.saved[1])
    assert actions(pair) == ["skip"] * 4
    assert pair.lacking() == {str(pair.saved[1]): "not there"}


def test_transfer_last(pair: Pair) -> None:
    assert actions(pair, transfer_last=2) == ["skip", "skip", "copy", "copy"]
    assert pair.sync(transfer_last=1).errors == []
    assert pair.copies() == [pair.saved[3]]
    assert pair.lacking(transfer_last=1) == {} and len(pair.lacking()) == 3
    assert actions(pair, transfer_last=4) == ["skip"] * 4, "older than the newest there"


def test_verified_only(pair: Pair) -> None:
    set_state(pair.source, pair.saved[1], "ok")
    set_state(pair.source, pair.saved[2], "failed")
    assert pair.sync(verified_only=True).errors == []
    assert pair.copies() == [pair.saved[1]]
    assert pair.lacking(verified_only=True) == {}


def test_encrypted_only(tmp_path: Path) -> None:
    pair = Pair.make(tmp_path, snapshots=1)
    group = GroupRef("", "host", "secret")
    hidden = save(pair.source, pair.tree, group=group, crypt=KEY).snapshot
    save(pair.source, pair.tree, group=GroupRef("", "host", "signed"), crypt=KEY, crypt_mode="sign-only")
    assert pair.sync(encrypted_only=True).errors == []
    assert pair.copies() == [hidden]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ((), {"host/alpha", "host/features", "host/signed", "vm/100"}),
        (("type:vm",), {"vm/100"}),
        (("include:type:vm", "group:host/alpha"), {"vm/100", "host/alpha"}),
        (("exclude:type:host",), {"vm/100"}),
        (("regex:^host/.*a",), {"host/alpha", "host/features"}),
        (("type:host", "exclude:regex:signed"), {"host/alpha", "host/features"}),
        (("group:host/absent",), set()),
    ],
)
def test_filters(tmp_path: Path, filters: tuple[str, ...], found: set[str]) -> None:
    pair = Pair(golden_store.unpack(tmp_path), make_store(tmp_path / "target"), tmp_path)
    parsed = [GroupFilter.parse(text) for text in filters]
    assert {str(step.source.group) for step in pair.plan(filters=parsed, max_depth=0).steps} == found


@pytest.mark.parametrize("text", ["", "type:", "type:tape", "group:host", "group:x/y", "regex:", "regex:(", "host/x"])
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(UsageError):
        GroupFilter.parse(text)


def test_exclude_wins() -> None:
    filters = [GroupFilter.parse("exclude:group:host/a"), GroupFilter.parse("group:host/a")]
    assert not chosen(GroupRef("", "host", "a"), filters)


def test_owner(pair: Pair) -> None:
    """A group of somebody else is left alone; the others are copied."""
    other = save(pair.source, pair.tree, group=GroupRef("", "host", "other")).snapshot
    pair.sync(transfer_last=1)
    with Store.open(pair.target) as store:
        set_owner(store, pair.saved[0].group, "joe@pbs")
    save(pair.source, pair.tree, time=START + 86400 * 9)
    newer = save(pair.source, pair.tree, group=other.group, time=other.time + 1).snapshot
    result = pair.sync()
    assert [type(problem.error) for problem in result.problems] == [Skipped]
    assert [step.source for step in result.done] == [newer]
    assert pair.sync(owner="joe@pbs").done[0].source.group == pair.saved[0].group


# -- namespaces ------------------------------------------------------------------------------------------------------


def golden(tmp_path: Path) -> Pair:
    return Pair(golden_store.unpack(tmp_path), make_store(tmp_path / "target"), tmp_path)


def test_namespaces_are_made(tmp_path: Path) -> None:
    pair = golden(tmp_path)
    assert pair.sync(namespace="one", to_namespace="off/site").errors == []
    assert [str(ref) for ref in pair.copies()] == [
        "ns/off/ns/site/ct/200/2023-11-14T22:13:27Z",
        "ns/off/ns/site/ns/two/ct/200/2023-11-14T22:25:00Z",
    ]
    assert pair.lacking(namespace="one", to_namespace="off/site") == {}
    assert damage(pair.target) == []


@pytest.mark.parametrize(("depth", "count"), [(0, 6), (1, 7), (2, 8)])
def test_max_depth(tmp_path: Path, depth: int, count: int) -> None:
    pair = golden(tmp_path)
    pair.sync(max_depth=depth)
    assert len(pair.copies()) == count
    assert pair.lacking(max_depth=depth) == {} and (len(pair.lacking()) == 0) == (count == 8)


def test_namespaces_that_do_not_fit(tmp_path: Path) -> None:
    pair = golden(tmp_path)
    with pytest.raises(UsageError):
        pair.plan(namespace="one", to_namespace="a/b/c/d/e/f/g")
    with pytest.raises(NotFound):
        pair.plan(namespace="absent")
    assert every(pair.target) == []


def every(path: Path) -> list[SnapshotRef]:
    with Store.open(path) as store:
        return every_snapshot(store)


# -- what has vanished -----------------------------------------------------------------------------------------------


def test_vanished_snapshots_go_and_protected_ones_stay(pair: Pair) -> None:
    pair.sync()
    with Store.open(pair.target) as store:
        protect(store, pair.saved[0], on=True)
    forget(pair.source, pair.saved[0], pair.saved[1])
    assert pair.sync().removal.removed == [] and pair.copies() == pair.saved
    result = pair.sync(remove_vanished=True)
    assert result.errors == [] and result.removal.removed == [pair.saved[1]]
    assert pair.copies() == [pair.saved[0], *pair.saved[2:]]
    assert damage(pair.target) == []


def test_what_comes_back_while_others_are_copied_stays(pair: Pair) -> None:
    pair.sync()
    options = SyncOptions(remove_vanished=True)
    moved = [pair.source / ref.path for ref in pair.saved[:2]]
    for path in moved:
        path.rename(pair.tree / path.name)
    with Store.open(pair.source) as ours, Store.open(pair.target) as theirs:
        plan = make_plan(ours, theirs, options)
        (pair.tree / moved[0].name).rename(moved[0])
        result = carry_out(ours, theirs, plan, options, ignore)
    assert result.errors == [] and result.removal.removed == [pair.saved[1]]
    assert pair.copies() == [pair.saved[0], *pair.saved[2:]]


def test_what_a_filter_drops_has_vanished(pair: Pair) -> None:
    pair.sync()
    for ref in pair.saved[1:]:
        set_state(pair.source, ref, "ok")
    plan = pair.plan(verified_only=True, remove_vanished=True)
    assert [item.ref for item in plan.removal.removed] == [pair.saved[0]] and plan.removal.holds == ()


def test_guard(pair: Pair) -> None:
    """More than half of a group at once; but what comes for it counts."""
    pair.sync()
    forget(pair.source, *pair.saved[:3])
    plan = pair.plan(remove_vanished=True)
    assert [hold.group for hold in plan.removal.holds] == [pair.saved[0].group]
    assert pair.plan(remove_vanished=True).removal.id == plan.removal.id
    for number in range(10, 12):
        save(pair.source, pair.tree, time=START + 86400 * number)
    plan = pair.plan(remove_vanished=True)
    assert plan.removal.holds == () and len(plan.removal.removed) == 3


def test_vanished_groups_and_namespaces(tmp_path: Path) -> None:
    pair = golden(tmp_path)
    pair.sync()
    foreign = save(pair.target, make_tree(tmp_path), group=GroupRef("", "host", "mine")).snapshot
    with Store.open(pair.target) as store:
        set_owner(store, foreign.group, "joe@pbs")
    with Store.open(pair.source) as store:
        remove(store, plan_forget_groups(store, ["vm/100"]))
        remove(store, namespaces.plan_delete(store, "one/two", with_groups=True))
        assert namespaces.delete_levels(store, "one/two") == ["one/two"]
    plan = pair.plan(remove_vanished=True)
    assert {str(hold.group) for hold in plan.removal.holds} == {"vm/100", "ns/one/ns/two/ct/200"}
    result = pair.sync(remove_vanished=True)
    assert result.errors == [] and result.removed_namespaces == ["one/two"]
    assert {str(group) for group in result.removal.groups} == {"vm/100", "ns/one/ns/two/ct/200"}
    assert set(pair.copies()) == {*finished(pair.source), foreign}, "another owner's group stays"


def make_tree(place: Path) -> Path:
    (place / "tree").mkdir()
    (place / "tree/file").write_bytes(b"x")
    return place / "tree"


def test_a_source_that_cannot_be_read_lets_nothing_vanish(pair: Pair) -> None:
    pair.sync()
    for ref in pair.saved:
        (pair.source / ref.path / "index.json.blob").write_bytes(b"damaged")
    plan = pair.plan(remove_vanished=True)
    assert plan.removal.items == () and len(plan.problems) == 4
    group = pair.source / pair.saved[0].group.path
    shutil.rmtree(group)
    group.write_bytes(b"no directory")
    assert len(pair.plan(remove_vanished=True).removal.holds) == 1


def test_plan_changes_nothing(pair: Pair) -> None:
    pair.sync(transfer_last=1)
    before = every(pair.target)
    pair.plan(remove_vanished=True, resync_corrupt=True)
    assert every(pair.target) == before
    assert dataclasses.is_dataclass(pair.plan())
