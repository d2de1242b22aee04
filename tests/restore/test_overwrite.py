"""Restoring over an existing tree: random trees under every rule against a model, and what the model does not have."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from archiver.errors import Locked, UsageError
from archiver.store.store import Store
from tests.compare import differences
from tests.mounts import temporary_file_system
from tests.restore.over import MODES, Model, Node, aside, build, expected, over, planned, random_tree, read, same
from tests.stores import listing, make_store, save


def tries(count: int) -> list[object]:
    return [*range(count), *(pytest.param(number, marks=pytest.mark.slow) for number in range(count, 200))]


@pytest.mark.parametrize("seed", tries(10))
def test_against_a_model(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    saved, there = random_tree(rng), random_tree(rng)
    if seed % 3 == 0:  # mostly alike
        there = saved | {path: node for path, node in there.items() if path not in saved and _fits(path, saved)}
        for path in rng.sample(sorted(saved), len(saved) // 3):
            if saved[path].kind == "file":
                there[path] = saved[path]._replace(what=rng.choice([b"bbbb", saved[path].what]), time=1_650_000_000)
        there = dict(sorted(there.items()))
    ref = save(make_store(tmp_path / "store"), build(tmp_path / "source", saved)).snapshot
    for mode in MODES:
        for delete in (False, True):
            target = tmp_path / "targets" / f"{mode}-{delete}" / "target"
            target.parent.mkdir(parents=True)
            build(target, there)
            before = listing(target)
            plan = planned(tmp_path / "store", ref, target, mode, delete=delete)
            assert listing(target) == before, "a plan changes nothing"
            wanted = expected(saved, there, mode, delete)
            result = over(tmp_path / "store", ref, target, mode, delete=delete)
            assert same(read(target), wanted.tree) == [], (mode, delete)
            assert {os.fsdecode(problem.path)[1:] for problem in result.problems} == wanted.blocked
            assert set(result.kinds) <= {"not-restored"}, result.problems
            left = aside(result)
            assert {path: node for path, node in left.items() if path in wanted.aside} == wanted.aside
            assert all(any(deep.startswith(path + "/") for deep in wanted.aside) for path in left.keys() - wanted.aside)
            _check_plan(plan, before, target, wanted.blocked, delete=delete)
            again = over(tmp_path / "store", ref, target, mode, delete=delete)
            assert (again.replaced, again.updated, again.removed) == (0, 0, 0)
            assert same(read(target), wanted.tree) == []


def _fits(path: str, tree: Model) -> bool:
    above = path.rpartition("/")[0]
    return above in tree and tree[above].kind == "dir"


def _check_plan(
    plan: object, before: dict[str, tuple[int, int, int, int, int]], target: Path, blocked: set[str], *, delete: bool
) -> None:
    """The plan names exactly what was made, replaced and moved away."""
    assert isinstance(plan, list)
    after = listing(target)
    by_deed: dict[str, set[str]] = {}
    for action in plan:
        by_deed.setdefault(action.deed, set()).add(str(target / os.fsdecode(action.path)[1:]))
    assert by_deed.get("create", set()) == after.keys() - before.keys()
    kept = after.keys() & before.keys()
    assert by_deed.get("replace", set()) >= {path for path in kept if after[path][0] != before[path][0]}
    gone = before.keys() - after.keys()
    tops = {path for path in gone if os.path.dirname(path) not in gone and os.path.dirname(path) in after}
    in_the_way = {path for path in tops if os.path.dirname(path) in by_deed.get("replace", set())}
    assert by_deed.get("remove", set()) == tops - in_the_way
    assert {os.path.relpath(path, target) for path in by_deed.get("blocked", set())} >= blocked
    changed = {path for path in kept if after[path][1:] != before[path][1:] and not os.path.isdir(path)}
    assert changed <= by_deed.get("update", set()) | by_deed.get("replace", set())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


def tree(place: Path, **files: str) -> Path:
    place.mkdir(parents=True)
    for name, text in files.items():
        (place / name).write_text(text)
    return place


def test_without_the_option_the_target_must_be_empty(store: Path, tmp_path: Path) -> None:
    ref = save(store, tree(tmp_path / "source", a="a")).snapshot
    tree(tmp_path / "target", b="b")
    with pytest.raises(UsageError, match="not empty"):
        over(store, ref, tmp_path / "target", None)
    with pytest.raises(UsageError, match="--delete needs --overwrite"):
        over(store, ref, tmp_path / "new", None, delete=True)
    assert os.listdir(tmp_path / "target") == ["b"] and not (tmp_path / "new").exists()


def test_equal_contents_are_not_written(store: Path, tmp_path: Path) -> None:
    """The same inodes afterwards, with the attributes of the snapshot."""
    source = tree(tmp_path / "source", same="x" * 100_000, other="y" * 100_000)
    ref = save(store, source).snapshot
    target = tree(tmp_path / "target", same="x" * 100_000, other="z" * 100_000)
    (target / "same").chmod(0o777)
    os.setxattr(target / "same", "user.extra", b"not in the snapshot")
    before = {name: (target / name).stat().st_ino for name in ("same", "other")}
    result = over(store, ref, target)
    assert (result.replaced, result.updated) == (1, 1) and result.problems == []
    assert differences(source, target) == []
    after = {name: (target / name).stat().st_ino for name in ("same", "other")}
    assert after["same"] == before["same"] and after["other"] != before["other"]


def test_a_name_of_a_file_outside_is_given_up_for_a_new_file(store: Path, tmp_path: Path) -> None:
    """A hard link in the target may be another name of anything; its attributes are not changed there."""
    source = tree(tmp_path / "source", file="text")
    ref = save(store, source).snapshot
    target, outside = tree(tmp_path / "target"), tree(tmp_path / "outside", secret="text")
    (outside / "secret").chmod(0o600)
    os.link(outside / "secret", target / "file")
    before = (outside / "secret").stat()
    assert over(store, ref, target).replaced == 1
    after = (outside / "secret").stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, 1)
    assert differences(source, target) == []


@pytest.mark.parametrize("mode", ["if-changed", "always"])
def test_hard_links(store: Path, tmp_path: Path, mode: str) -> None:
    source = tree(tmp_path / "source", a="first", d="other")
    os.link(source / "a", source / "b")
    os.link(source / "a", source / "c")
    os.utime(source / "a", ns=(0, 10**18))
    ref = save(store, source).snapshot
    target = tree(tmp_path / "target", a="old", b="old", c="FIRST")
    os.link(target / "a", target / "d")
    assert over(store, ref, target, mode).problems == []  # type: ignore[arg-type]
    assert differences(source, target) == []
    assert over(store, ref, target, mode).replaced == 0  # type: ignore[arg-type]


def test_no_link_to_a_file_that_stays(store: Path, tmp_path: Path) -> None:
    """It has other contents: a link to it would be wrong, and is told instead."""
    source = tree(tmp_path / "source", a="first")
    os.link(source / "a", source / "b")
    ref = save(store, source).snapshot
    target = tree(tmp_path / "target", a="mine")
    result = over(store, ref, target, "never")
    assert [(problem.path, problem.kind) for problem in result.problems] == [(b"/b", "not-restored")]
    assert "stayed as it is" in result.problems[0].reason
    assert os.listdir(target) == ["a"] and (target / "a").read_text() == "mine"


def test_rights_of_the_target_are_not_inherited(store: Path, tmp_path: Path) -> None:
    """A default ACL of a directory that was there does not get into what is restored in it."""
    source = tree(tmp_path / "source" / "in", file="text").parent
    (source / "in" / "deeper").mkdir()
    ref = save(store, source).snapshot
    target = tree(tmp_path / "target" / "in").parent
    acl = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + b"\x07\0" + owner.to_bytes(4, "little")
        for tag, owner in ((1, 2**32 - 1), (2, 1000), (4, 2**32 - 1), (16, 2**32 - 1), (32, 2**32 - 1))
    )
    try:
        os.setxattr(target / "in", "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("the file system has no ACLs")
    assert over(store, ref, target).problems == []
    assert differences(source, target) == []


def test_leftovers_of_a_killed_restore_are_removed(store: Path, tmp_path: Path) -> None:
    source = tree(tmp_path / "source", file="text")
    ref = save(store, source).snapshot
    target = tree(tmp_path / "target", file="text")
    (target / ".archiver-restore.0123456789abcdef.17").write_text("half")
    (target / ".archiver-restore.0123456789abcdef.18").mkdir()
    (target / ".archiver-restore.mine").write_text("not ours")
    assert over(store, ref, target).problems == []
    assert sorted(os.listdir(target)) == [".archiver-restore.mine", "file"]


def test_one_restore_at_a_time(store: Path, tmp_path: Path) -> None:
    ref = save(store, tree(tmp_path / "source", file="text")).snapshot
    target = tree(tmp_path / "target")
    import fcntl

    fd = os.open(target, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(Locked):
        over(store, ref, target)
    os.close(fd)
    assert over(store, ref, target).problems == []


def test_quarantine_of_a_mount_point_lies_inside(store: Path, tmp_path: Path) -> None:
    """And the next restore leaves it where it is."""
    source = tree(tmp_path / "source", file="text")
    ref = save(store, source).snapshot
    with temporary_file_system(tmp_path / "target", 1 << 20) as target:
        (target / "extra").write_text("precious")
        result = over(store, ref, target, delete=True)
        (place,) = result.quarantine
        assert Path(place).parent == target and Path(place, "extra").read_text() == "precious"
        assert over(store, ref, target, delete=True).removed == 0
        assert Path(place, "extra").exists()


def test_extras_of_large_directories(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More names than are kept in memory."""
    monkeypatch.setattr("archiver.restore.names._IN_MEMORY", 16)
    names = [f"file-{number}" for number in range(100)]
    source = tree(tmp_path / "source", **dict.fromkeys(names, "x"))
    ref = save(store, source).snapshot
    target = tmp_path / "target"
    shutil.copytree(source, target)
    for number in range(50):
        (target / f"extra-{number}").write_text("x")
    result = over(store, ref, target, delete=True)
    assert result.removed == 50 and sorted(os.listdir(target)) == sorted(names)
    assert len(os.listdir(result.quarantine[0])) == 50


def test_a_link_to_the_target_is_followed(store: Path, tmp_path: Path) -> None:
    """The target is what the user names; the quarantine is beside the directory itself."""
    ref = save(store, tree(tmp_path / "source", file="text")).snapshot
    real = tree(tmp_path / "elsewhere" / "real", extra="x")
    (tmp_path / "link").symlink_to(real)
    result = over(store, ref, tmp_path / "link", delete=True)
    assert Path(result.quarantine[0]).parent == real.parent
    assert os.listdir(real) == ["file"]


def test_planned_totals_of_an_empty_target(store: Path, tmp_path: Path) -> None:
    saved: Model = {
        "": Node("dir", b"", 0o755, 1),
        "a": Node("dir", b"", 0o755, 1),
        "a/f": Node("file", b"1234", 0o644, 1),
    }
    ref = save(store, build(tmp_path / "source", saved)).snapshot
    found = planned(store, ref, tmp_path / "new", "always")
    assert [(action.path, action.deed, action.bytes) for action in found] == [
        (b"/", "create", 0),
        (b"/a", "create", 0),
        (b"/a/f", "create", 4),
    ]
    assert not (tmp_path / "new").exists()


def test_store_is_not_written(store: Path, tmp_path: Path) -> None:
    ref = save(store, tree(tmp_path / "source", file="text")).snapshot
    with Store.open(store) as opened:
        inside = Path(opened.layout.base) / "host"
    with pytest.raises(UsageError, match="lies in the store"):
        over(store, ref, inside)
