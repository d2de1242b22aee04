"""Forgetting: what goes, what stays, and what may be in the way."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archiver.core.locks import DirectoryLock
from archiver.errors import ArchiverError, Locked, NotFound, UsageError
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.removal import (
    Outcome,
    RemovalPlan,
    plan_forget,
    plan_forget_groups,
    remove,
)
from archiver.store.sessions import Session
from archiver.store.store import Store
from tests.golden_store import PLAIN, unpack
from tests.mounts import fill, read_only_view, small_file_system, temporary_file_system
from tests.random_trees import build_plain, mutate
from tests.stores import (
    GROUP,
    ROOT,
    Heard,
    archiver,
    command,
    damage,
    every_snapshot,
    listing,
    make_store,
    restored_differences,
    save,
)

pytestmark = pytest.mark.in_memory

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build_plain(tmp_path / "source", 2, files=20, max_size=50_000)
    return tmp_path / "source"


def fill_store(path: Path, source: Path, count: int = 3) -> list[SnapshotRef]:
    found = []
    for number in range(count):
        mutate(source, number, 3)
        found.append(save(path, source, mode="metadata", time=1_700_000_000 + number).snapshot)
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


@pytest.fixture
def refs(path: Path, source: Path) -> list[SnapshotRef]:
    """Three snapshots of the store at ``path``; the last one is of ``source`` as it is."""
    return fill_store(path, source)


def forget(path: Path, *refs: SnapshotRef, heard: Heard | None = None) -> Outcome:
    with Store.open(path, listener=heard or Heard()) as store:
        return remove(store, plan_forget(store, [str(ref) for ref in refs]))


def check(path: Path, left: list[SnapshotRef]) -> None:
    """Exactly these snapshots are there, the database says so too, and nothing of others is left."""
    assert damage(path) == []
    with Store.open(path) as store:
        assert every_snapshot(store) == left
        assert all(store.is_finished(ref) for ref in left)
        assert store.database is not None and store.database.check() == []
        assert set(store.database.stamps()) == {ref.path for ref in left}
    assert not os.path.exists(path / ".archiver/removed") or os.listdir(path / ".archiver/removed") == []


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_of_three(path: Path, refs: list[SnapshotRef], source: Path, tmp_path: Path, place: int) -> None:
    """The others are as before, the database too, and the next night works as any other."""
    outcome = forget(path, refs[place])
    assert outcome == Outcome(removed=[refs[place]])
    left = [ref for ref in refs if ref != refs[place]]
    check(path, left)
    if refs[2] in left:
        assert restored_differences(path, refs[2], source, tmp_path / "out") == []
    heard = Heard()
    again = save(path, source, mode="metadata", heard=heard)
    assert restored_differences(path, again.snapshot, source, tmp_path / "next") == []
    assert again.result.files.unchanged > 0 and heard.notices == []


def test_database_that_was_open_is_told_at_once(path: Path, refs: list[SnapshotRef]) -> None:
    with Store.open(path) as store:
        assert store.database is not None
        remove(store, plan_forget(store, [str(refs[0])]))
        assert set(store.database.stamps()) == {ref.path for ref in refs[1:]}
        assert store.database.check() == []


def test_group_goes_with_its_last_snapshot(path: Path, refs: list[SnapshotRef]) -> None:
    for name in ("notes", "owner.tmp_0a1b2c3d", "notes.tmp_abc"):
        (path / GROUP.path / name).write_text("about this group\n")
    assert forget(path, *refs[:2]).groups == []
    assert (path / GROUP.path / "owner").exists()
    assert forget(path, refs[2]) == Outcome(removed=[refs[2]], groups=[GROUP])
    assert os.listdir(path / "host") == []
    check(path, [])


def test_group_with_something_else_in_it_stays(path: Path, refs: list[SnapshotRef]) -> None:
    (path / GROUP.path / "of somebody").mkdir()
    assert forget(path, *refs).groups == []
    assert sorted(os.listdir(path / GROUP.path)) == ["of somebody", "owner"]


def test_whole_group(path: Path, refs: list[SnapshotRef]) -> None:
    """The protected one stays."""
    (path / refs[1].path / ".protected").touch()
    with Store.open(path) as store:
        plan = plan_forget_groups(store, [str(GROUP)])
        assert [item.keep for item in plan.items] == [False, True, False]
        assert remove(store, plan).removed == [refs[0], refs[2]]
    check(path, [refs[1]])
    (path / refs[1].path / ".protected").unlink()
    with Store.open(path) as store:
        assert remove(store, plan_forget_groups(store, [str(GROUP)])).groups == [GROUP]


def test_empty_group(path: Path) -> None:
    """Older servers have left such."""
    (path / GROUP.path).mkdir(parents=True)
    (path / GROUP.path / "owner").write_text("root@pam\n")
    with Store.open(path) as store:
        assert remove(store, plan_forget_groups(store, [str(GROUP)])).groups == [GROUP]
    assert not (path / GROUP.path).exists()


def test_unfinished_one(path: Path, refs: list[SnapshotRef]) -> None:
    unfinished = path / refs[0].path
    (unfinished / "index.json.blob").unlink()
    assert forget(path, refs[0]).removed == [refs[0]]
    check(path, refs[1:])


def test_what_cannot_be_named(path: Path, refs: list[SnapshotRef]) -> None:
    with Store.open(path) as store:
        for text, kind in (
            (str(GROUP), UsageError),
            ("host/test/2001-01-01T00:00:00Z", NotFound),
            ("host/other/2001-01-01T00:00:00Z", NotFound),
            ("nonsense", UsageError),
        ):
            with pytest.raises(kind):
                plan_forget(store, [text])
        with pytest.raises(UsageError):
            plan_forget_groups(store, [str(refs[0])])
        with pytest.raises(NotFound):
            plan_forget_groups(store, ["host/other"])
        assert [item.ref for item in plan_forget(store, ["latest", str(refs[2])]).items] == [refs[2]]
    check(path, refs)


# -- what changes between plan and deed ------------------------------------------------------------------------------


def protect_it(directory: Path) -> None:
    (directory / ".protected").touch()


def lose_its_manifest(directory: Path) -> None:
    (directory / "index.json.blob").unlink()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (protect_it, "is protected"),
        (lose_its_manifest, "has changed"),
        (shutil.rmtree, "not there any more"),
    ],
)
def test_changed_meanwhile(path: Path, refs: list[SnapshotRef], change: Callable[[Path], None], reason: str) -> None:
    with Store.open(path) as store:
        plan = plan_forget(store, [str(ref) for ref in refs[:2]])
        change(path / refs[0].path)
        outcome = remove(store, plan)
    assert outcome.removed == [refs[1]] and outcome.failed == []
    ((ref, told),) = outcome.skipped
    assert ref == refs[0] and reason in told


def test_snapshot_that_is_read_stays(path: Path, refs: list[SnapshotRef]) -> None:
    with Store.open(path) as reader:
        with reader.held(refs[0]), reader.held(refs[0]):
            ((ref, told),) = forget(path, *refs[:2]).skipped
            assert ref == refs[0] and "in use" in told
        reader.hold(refs[2])
        assert forget(path, refs[2]).removed == []
    assert forget(path, refs[0]).removed == [refs[0]]
    check(path, refs[2:])


def test_snapshot_that_is_being_removed_is_not_read(path: Path, refs: list[SnapshotRef]) -> None:
    lock = DirectoryLock(str(path / refs[0].path))
    with Store.open(path) as store, lock, pytest.raises(Locked), store.held(refs[0]):
        pass
    forget(path, refs[0])
    with Store.open(path) as store, pytest.raises(NotFound), store.held(refs[0]):
        pass


def test_reference_of_a_running_backup_stays(
    path: Path, refs: list[SnapshotRef], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    publish = Session.publish

    def look(session: Session, *arguments: object) -> SnapshotRef:
        told.append(forget(path, *refs))
        return publish(session, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Session, "publish", look)
    saved = save(path, source, mode="metadata")
    (outcome,) = told
    assert outcome.removed == refs[:2] and [ref for ref, _ in outcome.skipped] == [refs[2]]
    check(path, [refs[2], saved.snapshot])
    assert restored_differences(path, saved.snapshot, source, tmp_path / "out") == []


def test_group_that_vanishes_while_a_backup_is_published(
    path: Path, refs: list[SnapshotRef], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the group and its lock the last snapshot is forgotten."""
    make_group = Session._make_group
    calls = []

    def interfere(session: Session, group: GroupRef, owner: str) -> None:
        make_group(session, group, owner)
        calls.append(group)
        if len(calls) == 1:
            assert forget(path, *refs).groups == [GROUP]

    monkeypatch.setattr(Session, "_make_group", interfere)
    saved = save(path, source, mode="data")
    assert len(calls) == 3
    assert (path / GROUP.path / "owner").read_text() == "root@pam\n"
    check(path, [saved.snapshot])
    assert restored_differences(path, saved.snapshot, source, tmp_path / "out") == []


def test_group_that_is_published_into_stays(path: Path, refs: list[SnapshotRef]) -> None:
    with DirectoryLock(str(path / GROUP.path)):
        outcome = forget(path, *refs)
    assert outcome.removed == refs and outcome.groups == []
    assert os.listdir(path / GROUP.path) == ["owner"]


def test_two_processes_at_once(path: Path, source: Path) -> None:
    """Every snapshot is removed by exactly one of them."""
    refs = fill_store(path, source, 12)
    names = [str(ref) for ref in refs[:10]]
    running = [
        subprocess.Popen(
            command("--store", path, "forget", *names), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode in (0, 10, 14), errors
    check(path, refs[10:])


# -- hostile and unlucky ---------------------------------------------------------------------------------------------


def victim(place: Path) -> Path:
    """What looks like a snapshot, but is somebody else's."""
    (place / "precious").mkdir(parents=True)
    (place / "index.json.blob").write_bytes(b"mine")
    (place / "precious" / "file").write_bytes(b"mine")
    return place


@pytest.mark.parametrize("what", ["snapshot", "group", "type", "namespace"])
def test_symlinks_are_not_followed(path: Path, refs: list[SnapshotRef], tmp_path: Path, what: str) -> None:
    time = refs[0].path.rsplit("/", 1)[1]
    outside = tmp_path / "outside"
    if what == "snapshot":
        victim(outside)
        link, name = path / "host/test/2001-01-01T00:00:00Z", "host/test/2001-01-01T00:00:00Z"
    elif what == "group":
        victim(outside / time)
        link, name = path / "host/linked", f"host/linked/{time}"
    elif what == "type":
        victim(outside / "test" / time)
        link, name = path / "ct", f"ct/test/{time}"
    else:
        victim(outside / "host/test" / time)
        (path / "ns").mkdir()
        link, name = path / "ns/a", f"ns/a/host/test/{time}"
    link.symlink_to(outside)
    before = listing(outside)
    with Store.open(path) as store:
        try:
            plan = plan_forget(store, [name])
        except ArchiverError:
            assert what == "snapshot"
        else:
            outcome = remove(store, plan)
            assert outcome.removed == [] and "symlink" in outcome.skipped[0][1]
        for group in ("host/linked", "ct/test", "ns/a/host/test"):
            try:
                plan = plan_forget_groups(store, [group])
            except NotFound:
                continue
            assert remove(store, plan).removed == []
    assert listing(outside) == before
    link.unlink()
    check(path, refs)


def test_symlinks_in_a_snapshot_are_removed_themselves(path: Path, refs: list[SnapshotRef], tmp_path: Path) -> None:
    outside = victim(tmp_path / "outside")
    (path / refs[0].path / "link").symlink_to(outside)
    (path / refs[0].path / "below").mkdir()
    (path / refs[0].path / "below" / "link").symlink_to(outside)
    before = listing(outside)
    assert forget(path, refs[0]).removed == [refs[0]]
    assert listing(outside) == before
    check(path, refs[1:])


@pytest.mark.parametrize("name", [".archiver/removed", ".archiver"])
def test_places_of_ours_that_lead_elsewhere(path: Path, refs: list[SnapshotRef], tmp_path: Path, name: str) -> None:
    outside = victim(tmp_path / "outside")
    victim(outside / "removed")
    if name == ".archiver":
        shutil.rmtree(path / ".archiver")
    (path / name).symlink_to(outside)
    before = {place for place in listing(outside) if "/db" not in place}
    with Store.open(path) as store:
        outcome = remove(store, plan_forget(store, [str(refs[0])]))
    assert outcome.removed == [refs[0]]
    assert {place for place in listing(outside) if "/db" not in place} == before
    assert not (path / refs[0].path).exists()


def test_what_a_killed_process_left_is_swept(path: Path, refs: list[SnapshotRef]) -> None:
    """But not what another one is removing right now."""
    removed = path / ".archiver/removed"
    (removed / "dead").mkdir(parents=True)
    (removed / "dead" / "tree.ppxar.didx").write_bytes(b"x")
    (removed / "alive").mkdir()
    with DirectoryLock(str(removed / "alive")):
        forget(path, refs[0])
        assert os.listdir(removed) == ["alive"]
    forget(path, refs[1])
    check(path, refs[2:])


def test_files_that_cannot_be_unlinked(path: Path, refs: list[SnapshotRef], monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot is gone all the same; the rest is told, and tried again by the next one."""
    heard = Heard()
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", _raise(errno.EIO))
        assert forget(path, refs[0], heard=heard).removed == [refs[0]]
    assert len(heard.notices) == 1 and "cannot remove what is left of it" in heard.notices[0]
    assert damage(path) == [] and len(os.listdir(path / ".archiver/removed")) == 1
    forget(path, refs[1])
    check(path, refs[2:])


def _raise(number: int) -> Callable[..., None]:
    def failing(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return failing


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS])
def test_one_that_fails_does_not_stop_the_others(
    path: Path, refs: list[SnapshotRef], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    rename = os.rename

    def failing(source: str, target: str) -> None:
        if source.endswith(refs[0].path):
            raise OSError(number, os.strerror(number))
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing)
        outcome = forget(path, *refs[:2])
    assert outcome.removed == [refs[1]]
    ((ref, error),) = outcome.failed
    assert ref == refs[0] and str(error).startswith(f"cannot remove {path / refs[0].path}: ")
    check(path, [refs[0], refs[2]])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EXDEV])
def test_without_a_rename(path: Path, refs: list[SnapshotRef], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The manifest goes first."""
    unlinked: list[str] = []
    unlink = os.unlink

    def noted(name: str) -> None:
        unlinked.append(name)
        unlink(name)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", _raise(number))
        patched.setattr(os, "unlink", noted)
        assert forget(path, refs[0]).removed == [refs[0]]
    names = [os.path.basename(name) for name in unlinked if name.startswith(str(path / refs[0].path))]
    assert names[0] == "index.json.blob" and len(names) == 3
    check(path, refs[1:])


# -- disks -----------------------------------------------------------------------------------------------------------


def test_read_only(path: Path, refs: list[SnapshotRef], tmp_path: Path) -> None:
    before = listing(path)
    with read_only_view(path, tmp_path / "view") as view:
        for arguments in (
            ["forget", str(refs[0])],
            ["forget", "--all", str(GROUP)],
            ["prune", "--keep-last", "2"],
            ["protect", "latest"],
            ["note", "latest", "text"],
            ["owner", str(GROUP), "joe@pbs"],
            ["ns", "create", "a"],
        ):
            done = archiver("--store", view, *arguments)
            assert done.returncode == 2 and "read-only" in done.stderr, arguments
        for arguments in (["prune", "--keep-last", "2", "--dry-run"], ["note", "latest"], ["owner", str(GROUP)]):
            assert archiver("--store", view, *arguments).returncode == 0
    assert listing(path) == before


@pytest.fixture(params=["ours", "made by a PBS"])
def full(request: pytest.FixtureRequest, tmp_path: Path, source: Path) -> Iterator[Path]:
    """A store on a disk without a free byte: not even a directory can be made."""
    with small_file_system(tmp_path, 24 * MIB) as place:
        if request.param == "ours":
            fill_store(make_store(place / "store"), source)
            store = place / "store"
        else:
            store = unpack(place)
        fill(place)
        with pytest.raises(OSError, match="No space left"):
            (place / "one more").mkdir()
        yield store


def test_full_disk(full: Path) -> None:
    with Store.open(full, read_only=True) as store:
        refs = every_snapshot(store)
        chosen = [ref for ref in refs if ref.group == refs[0].group]
    for ref in chosen:
        done = archiver("--store", full, "protect", "--off", str(ref))
        assert done.returncode == 0, done.stderr
    done = archiver("--store", full, "forget", *map(str, chosen[:-1]))
    assert done.returncode == 0, done.stderr
    done = archiver("--store", full, "prune", "--keep-last", "1", "--json")
    assert done.returncode == 0, done.stderr
    done = archiver("--store", full, "forget", "--all", str(chosen[-1].group))
    assert done.returncode == 0, done.stderr
    assert not (full / chosen[-1].group.path).exists()
    (full.parent / "filler").unlink()
    with Store.open(full) as store:
        assert every_snapshot(store) == [ref for ref in refs if ref not in chosen]
    assert damage(full) == []


def test_full_disk_without_room_for_a_rename(tmp_path: Path, source: Path) -> None:
    """Names need memory there."""
    with temporary_file_system(tmp_path / "place", 8 * MIB) as place:
        refs = fill_store(make_store(place / "store"), source)
        fill(place)
        assert forget(place / "store", *refs[:2]).removed == refs[:2]
        (place / "filler").unlink()
        check(place / "store", refs[2:])


# -- a store of a PBS ------------------------------------------------------------------------------------------------


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return unpack(tmp_path)


def test_store_of_a_pbs(golden: Path) -> None:
    """It does not become one of ours by it; the protected snapshot stays."""
    with Store.open(golden) as store:
        before = every_snapshot(store)
        plan = plan_forget(store, [str(ref) for ref in before])
        assert len(plan.protected) == 1
        outcome = remove(store, plan)
        assert not outcome.skipped and not outcome.failed
        assert every_snapshot(store) == plan.protected
        assert {str(group) for group in outcome.groups} == {
            str(ref.group) for ref in before if ref.group != plan.protected[0].group
        }
        assert store.database is not None and set(store.database.stamps()) == {plan.protected[0].path}
    assert damage(golden) == []
    assert sorted(os.listdir(golden / ".archiver")) == ["removed"]
    with Store.open(golden) as store:
        assert store.identity is None
    assert set(PLAIN) & {str(ref) for ref in outcome.removed}


def test_empty_plan_changes_nothing(path: Path, refs: list[SnapshotRef]) -> None:
    with Store.open(path) as store:
        assert store.database is not None
    before = listing(path / "host")
    with Store.open(path) as store:
        assert remove(store, RemovalPlan(())) == Outcome()
    assert listing(path / "host") == before
