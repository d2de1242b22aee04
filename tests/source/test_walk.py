from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import stat as st
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from archiver.core import linux
from archiver.errors import ArchiverError, NotFound, UsageError
from archiver.source.content import OpenFile
from archiver.source.metadata import Features
from archiver.source.problem import Note, Problem
from archiver.source.walk import SourceDirectory, SourceEntry, Walk, WalkOptions
from formats.patterns import Pattern
from formats.pxar.metadata import Metadata
from tests.random_trees import build_plain, mutate
from tests.source.sandbox import IS_ROOT, as_ordinary_user, mount, with_mounts, world_readable_directory
from tests.source.visiting import Seen, descriptor_count, descriptors, entries_of, found, paths_of, visit, walked
from tests.trees import build_features, remove_tree

MS_BIND = 0x1000


def fill(root: Path, *paths: str) -> None:
    """Empty files, and directories for the paths that end in a slash."""
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            target.mkdir(exist_ok=True)
        else:
            target.touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root"
    directory.mkdir()
    return directory


@pytest.fixture
def problems() -> list[Problem]:
    return []


@pytest.fixture
def walk(root: Path, problems: list[Problem]) -> Iterator[Walk]:
    """Of ``root``, which is filled before the walk is opened."""
    with Walk(os.fsencode(root), WalkOptions(), problems.append) as walk:
        yield walk


def no_problem(problem: Problem) -> None:
    pytest.fail(str(problem))


def kinds(problems: list[Problem]) -> list[tuple[bytes, str]]:
    return [(problem.path, problem.kind) for problem in problems]


# What is seen, and in which order.


def test_order_is_that_of_bytes(root: Path) -> None:
    names = [b"a", b"B", b"a.b", b"a b", b"a-", b"\xff", b"\xc3\xa4", b"Z", b"-", b"\x01", b"~", b"new\nline", b"\\"]
    names += [b"n" * 255, b"\xfe" * 255, b" ", b"...", b".hidden", b"aa"]
    for name in names:
        directory = os.fsencode(root) + b"/" + name
        os.mkdir(directory)
        for inner in names:
            os.close(os.open(directory + b"/" + inner, os.O_CREAT))
    seen = paths_of(root)
    ordered = sorted(names)
    assert seen == [path for name in ordered for path in (b"/" + name, *(b"/" + name + b"/" + i for i in ordered))]


@pytest.mark.parametrize("seed", range(4))
def test_random_trees_against_find(root: Path, seed: int) -> None:
    build_plain(root, seed, files=150, directories=60, max_size=10)
    assert paths_of(root) == found(root)
    for generation in range(3):
        mutate(root, 100 * seed + generation, changes=30)
        assert paths_of(root) == found(root)


@pytest.fixture
def features(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "features"
    build_features(root, as_root=IS_ROOT)
    yield root
    remove_tree(root)  # some of it is immutable


def test_every_feature_against_find(features: Path) -> None:
    root = features
    seen = paths_of(root)
    assert seen == found(root)
    with Walk(os.fsencode(root), WalkOptions(), lambda problem: None) as walk:
        modes = {seen.path: seen.entry.stat.st_mode for seen in visit(walk)}
    assert {st.S_IFMT(mode) for mode in modes.values()} >= {st.S_IFDIR, st.S_IFREG, st.S_IFLNK, st.S_IFIFO, st.S_IFSOCK}
    if IS_ROOT:
        assert {st.S_IFMT(mode) for mode in modes.values()} >= {st.S_IFCHR, st.S_IFBLK}
    listing = ["find", str(root), "-mindepth", "1", "-printf", "%m %y /%P\\0"]
    text = subprocess.run(listing, stdout=subprocess.PIPE, check=True).stdout
    letters = {"d": st.S_IFDIR, "f": st.S_IFREG, "l": st.S_IFLNK, "p": st.S_IFIFO, "s": st.S_IFSOCK}
    letters |= {"c": st.S_IFCHR, "b": st.S_IFBLK}
    for line in text.split(b"\0")[:-1]:
        permissions, letter, path = line.split(b" ", 2)
        assert modes[path] == letters[letter.decode()] | int(permissions, 8), path


def test_hard_links_are_entries_of_one_file(root: Path) -> None:
    fill(root, "a/first", "b/")
    os.link(root / "a/first", root / "b/second")
    os.link(root / "a/first", root / "third")
    with Walk(os.fsencode(root), WalkOptions(), lambda problem: None) as walk:
        files = [seen for seen in visit(walk) if seen.entered is None]
    assert [seen.path for seen in files] == [b"/a/first", b"/b/second", b"/third"]
    assert len({(seen.entry.stat.st_dev, seen.entry.stat.st_ino) for seen in files}) == 1
    assert {seen.entry.stat.st_nlink for seen in files} == {3}


def test_symlinks_are_not_followed(root: Path) -> None:
    fill(root, "target/inside")
    (root / "link").symlink_to("target")
    (root / "loop").symlink_to(".")
    (root / "dangling").symlink_to("nowhere")
    assert paths_of(root) == [b"/dangling", b"/link", b"/loop", b"/target", b"/target/inside"]


def test_paths_and_the_root_itself(root: Path, walk: Walk) -> None:
    fill(root, "a/b/c", "d")
    root.chmod(0o750)
    top = walk.open_root()
    assert (top.path, top.name, top.parent) == (b"/", b"", None)
    assert top.path_of(b"d") == b"/d"
    assert top.metadata.stat.mode == st.S_IFDIR | 0o750
    a = walk.enter(top.look(b"a"))
    assert a is not None and a.path == b"/a"
    b = walk.enter(a.look(b"b"))
    assert b is not None and (b.path, b.path_of(b"c")) == (b"/a/b", b"/a/b/c")
    assert b.names == [b"c"]


def test_root_given_in_other_ways(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(root, "a/b")
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root)
    for way in (tmp_path / "link", Path("."), root / "a" / "..", Path("../root")):
        assert paths_of(way) == [b"/a", b"/a/b"]
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\n")
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\n/x")
    assert paths_of(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n"))) == [b"/x"]


def test_generated_exclude_file_of_the_root_is_passed_over(root: Path) -> None:
    fill(root, ".pxarexclude-cli", "sub/.pxarexclude-cli")
    paths, problems = walked(root)
    assert paths == [b"/sub", b"/sub/.pxarexclude-cli"]
    assert [(problem.path, problem.kind) for problem in problems] == [(b"/.pxarexclude-cli", "skipped")]


def test_access_times_of_directories_stay(root: Path) -> None:
    fill(root, "sub/file")
    os.utime(root / "sub", ns=(1, 2))
    assert paths_of(root) == [b"/sub", b"/sub/file"]
    assert (root / "sub").stat().st_atime_ns == 1


# What cannot be a source.


def test_absent_root(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        walked(tmp_path / "absent")
    (tmp_path / "dangling").symlink_to("absent")
    with pytest.raises(NotFound, match="does not exist"):
        walked(tmp_path / "dangling")


def test_root_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "fifo"):
        with pytest.raises(ArchiverError, match="not a directory"):
            walked(tmp_path / name)


@pytest.mark.parametrize("place", ["/proc", "/sys", "/proc/self/fdinfo"])
def test_virtual_root(place: str) -> None:
    before = descriptors()
    with pytest.raises(UsageError, match="file system"):
        walked(Path(place), WalkOptions(all_file_systems=True))
    assert descriptors() == before


# Descriptors.


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """2,100 levels, paths of 4,200 bytes and more; each level has a file before and one after its directory."""
    top = tmp_path / "deep"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(2100):
        for name in ("a", "z"):
            os.close(os.open(name, os.O_CREAT, dir_fd=fd))
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    yield top
    subprocess.run(["rm", "-rf", top], check=True)  # shutil's way needs a stack frame for each level


def test_few_descriptors_however_deep(deep: Path) -> None:
    before, most, count, longest = descriptor_count(), 0, 0, 0
    with Walk(os.fsencode(deep), WalkOptions(), no_problem) as walk:
        for seen in visit(walk):
            if count < 200 or count % 20 == 0:  # looking takes its time
                most = max(most, descriptor_count() - before)
            count += 1
            longest = max(longest, len(seen.path))
    assert count == 3 * 2100
    assert longest > 4096
    assert 10 < most <= 64
    assert descriptor_count() == before


def test_deep_tree_with_patterns(deep: Path) -> None:
    """Paths are asked for at every level."""
    excludes = (Pattern.parse(b"a"), Pattern.parse(b"/" + b"d/" * 1000 + b"z"))
    assert len(paths_of(deep, WalkOptions(excludes=excludes))) == 2 * 2100 - 1


@pytest.mark.parametrize("after", [0, 1, 60, 150])
def test_no_descriptor_is_left_behind(root: Path, after: int) -> None:
    fill(root, "d/" * 60 + "x", "e/f/g", "z")

    def stop(how: Callable[[Iterator[Seen]], None]) -> None:
        with Walk(os.fsencode(root), WalkOptions(), lambda problem: None) as walk:
            visiting = visit(walk)
            for _ in range(after):
                next(visiting, None)
            how(visiting)

    def thrown(visiting: Iterator[Seen]) -> None:
        next(visiting, None)
        visiting.throw(KeyboardInterrupt)  # type: ignore[attr-defined]

    before = descriptors()
    stop(lambda visiting: None)
    assert descriptors() == before
    stop(lambda visiting: visiting.close())  # type: ignore[attr-defined]
    assert descriptors() == before
    with pytest.raises(KeyboardInterrupt):
        stop(thrown)
    assert descriptors() == before


def test_no_descriptor_is_left_behind_by_failing_listeners(root: Path) -> None:
    """The receiver of problems raises."""
    fill(root, "a/" * 55 + "x")
    (root / "a/.pxarexclude").mkdir()
    victim = root / "a/a/a/gone"
    victim.mkdir()

    def refuse(problem: Problem) -> None:
        raise ValueError(problem)

    before = descriptors()
    with pytest.raises(ValueError), Walk(os.fsencode(root), WalkOptions(), refuse) as walk:
        list(visit(walk))
    assert descriptors() == before
    (root / "a/.pxarexclude").rmdir()
    with pytest.raises(ValueError), Walk(os.fsencode(root), WalkOptions(), refuse) as walk:
        for seen in visit(walk):
            if seen.path == b"/a/a/a":
                victim.rmdir()
    assert descriptors() == before


def test_running_out_of_descriptors_ends_the_walk(root: Path) -> None:
    fill(root, "d/" * 40 + "x")
    before = descriptors()
    problems: list[Problem] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)  # the limit is on numbers
    os.close(spare)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 10, hard))
        with pytest.raises(OSError) as caught, Walk(os.fsencode(root), WalkOptions(), problems.append) as walk:
            list(visit(walk))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    assert problems == []
    assert descriptors() == before


def test_large_directory_costs_its_names(root: Path) -> None:
    count = 20_000
    fd = os.open(root, os.O_RDONLY)
    for number in range(count):
        os.close(os.open(f"{number:012}", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    gc.collect()
    tracemalloc.start()
    with Walk(os.fsencode(root), WalkOptions(excludes=[Pattern.parse(b"*7")]), no_problem) as walk:
        seen = sum(1 for _ in visit(walk))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == count * 9 // 10
    assert peak < count * 150


# Changes while the walk is on its way.


def test_vanished_before_it_is_looked_at(root: Path, walk: Walk, problems: list[Problem]) -> None:
    fill(root, "a", "b", "c/", "d")
    top = walk.open_root()
    (root / "b").unlink()
    (root / "c").rmdir()
    assert [entry.name for entry in entries_of(top)] == [b"a", b"d"]
    assert kinds(problems) == [(b"/b", "vanished"), (b"/c", "vanished")]


def to_nothing(path: Path) -> None:
    shutil.rmtree(path)


def to_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")


def to_symlink(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("/etc")


def to_symlink_to_itself(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def to_fifo(path: Path) -> None:
    shutil.rmtree(path)
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("replace", "kind"),
    [
        (to_nothing, "vanished"),
        (to_file, "unreadable"),
        (to_symlink, "unreadable"),
        (to_symlink_to_itself, "unreadable"),
        (to_fifo, "unreadable"),
    ],
)
def test_directory_replaced_before_it_is_entered(
    root: Path, walk: Walk, problems: list[Problem], replace: Callable[[Path], None], kind: str
) -> None:
    fill(root, "d/inside", "e/inside")
    top = walk.open_root()
    entries = entries_of(top)
    listed = next(entries)
    replace(root / "d")
    before = descriptors()
    assert walk.enter(listed) is None
    assert descriptors() == before
    assert kinds(problems) == [(b"/d", kind)]
    following = walk.enter(next(entries))  # the walk goes on
    assert following is not None and following.names == [b"inside"]


def test_directory_replaced_by_another_directory(root: Path, walk: Walk, problems: list[Problem]) -> None:
    """What is stored is the one that was opened: metadata and names belong together."""
    fill(root, "d/old")
    top = walk.open_root()
    listed = top.look(b"d")
    shutil.rmtree(root / "d")
    fill(root, "d/new")
    (root / "d").chmod(0o711)
    entered = walk.enter(listed)
    assert entered is not None and entered.names == [b"new"]
    assert entered.metadata.stat.mode == st.S_IFDIR | 0o711
    assert entered.stat.st_ino == (root / "d").stat().st_ino
    assert problems == []


class Meddling(Walk):
    """Does something after a directory was opened, before it is listed."""

    def __init__(self, root: Path, report: Callable[[Problem], None], meddle: Callable[[int], None]) -> None:
        super().__init__(os.fsencode(root), WalkOptions(), report)
        self._meddle = meddle

    def collect(self, fd: int, stat: os.stat_result, features: Features, note: Note) -> Metadata:
        self._meddle(fd)
        return super().collect(fd, stat, features, note)


def test_directory_removed_while_it_is_read(root: Path, problems: list[Problem]) -> None:
    """Gone after it was opened: nothing of it is left to save, and that is no error."""
    fill(root, "d/inside", "e")

    def remove(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}") == str(root / "d"):
            shutil.rmtree(root / "d")

    with Meddling(root, problems.append, remove) as walk:
        assert [seen.path for seen in visit(walk)] == [b"/d", b"/e"]
    assert kinds(problems) in ([(b"/d", "vanished")], [])  # some file systems show an empty directory


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.ENOENT, "vanished", "vanished before it was read"),
        (errno.EIO, "unreadable", "not all of its entries could be listed: input/output error"),
    ],
)
def test_listing_that_fails(
    root: Path, problems: list[Problem], monkeypatch: pytest.MonkeyPatch, number: int, kind: str, reason: str
) -> None:
    fill(root, "d/inside", "e")
    scandir = os.scandir

    def failing(fd: int) -> Any:
        if os.readlink(f"/proc/self/fd/{fd}") == str(root / "d"):
            raise OSError(number, os.strerror(number))
        return scandir(fd)

    monkeypatch.setattr(os, "scandir", failing)
    assert walked(root) == ([b"/d", b"/e"], [Problem(b"/d", reason, kind)])  # type: ignore[arg-type]


def descend(walk: Walk, depth: int) -> list[SourceDirectory]:
    """Into the directories called "d", ``depth`` times."""
    way = [walk.open_root()]
    for _ in range(depth):
        below = walk.enter(way[-1].look(b"d"))
        assert below is not None
        way.append(below)
    return way


def ascend(walk: Walk, way: list[SourceDirectory], depth: int) -> None:
    while len(way) > depth + 1:
        way.pop()
        walk.leave()


def test_way_back_after_a_directory_was_moved(root: Path, walk: Walk, problems: list[Problem]) -> None:
    """ ".." leads elsewhere; the names from the root lead back."""
    fill(root, "d/" * 60 + "x", "d/z")
    way = descend(walk, 60)
    assert way[1].fd < 0
    (root / "d/d").rename(root / "elsewhere")
    ascend(walk, way, 1)
    assert [entry.name for entry in entries_of(way[1])][-1:] == [b"z"]
    assert kinds(problems) == [(b"/d/d", "vanished")]  # it was still listed


def test_way_back_into_a_directory_that_was_moved(root: Path, walk: Walk, problems: list[Problem]) -> None:
    """It is still the same directory, another one has its name by now."""
    fill(root, "d/" * 60 + "x", "d/z")
    way = descend(walk, 60)
    (root / "d").rename(root / "elsewhere")
    fill(root, "d/z", "d/wrong")
    ascend(walk, way, 1)
    assert os.fstat(way[1].fd).st_ino == (root / "elsewhere").stat().st_ino
    assert [entry.name for entry in entries_of(way[1])] == [b"d", b"z"]
    assert problems == []


def test_no_way_back(root: Path, walk: Walk, problems: list[Problem]) -> None:
    """Another directory has the name and ".." leads elsewhere: nothing is read from the wrong place."""
    fill(root, "d/" * 60 + "x", "d/z", "z", "e/inside")
    way = descend(walk, 60)
    (root / "d/d").rename(root / "elsewhere")
    old = os.open(root / "d", os.O_RDONLY)  # so that the new directory does not get its inode
    shutil.rmtree(root / "d")
    fill(root, "d/d/wrong", "d/z")
    ascend(walk, way, 1)
    os.close(old)
    assert way[1].fd < 0
    assert list(entries_of(way[1])) == []
    assert kinds(problems)[0] == (b"/d", "unreadable")
    assert set(kinds(problems)[1:]) == {(b"/d/d", "unreadable"), (b"/d/z", "unreadable")}
    assert all("moved or replaced" in problem.reason for problem in problems)
    ascend(walk, way, 0)  # the root is never lost
    assert [entry.name for entry in entries_of(way[0])] == [b"d", b"e", b"z"]
    other = walk.enter(way[0].look(b"e"))
    assert other is not None and other.names == [b"inside"]


def test_no_way_back_for_many_levels(root: Path, walk: Walk, problems: list[Problem]) -> None:
    """Nobody is asked to continue in a directory above the lost one with the lost one's descriptor."""
    fill(root, "d/" * 100 + "x", "z")
    way = descend(walk, 100)
    before = descriptor_count()
    (root / ("d/" * 30)).rename(root / "elsewhere")
    shutil.rmtree(root / "d")
    ascend(walk, way, 0)
    assert len(problems) == 29  # levels 1 to 29 are gone, the levels below were only moved
    assert descriptor_count() < before
    assert [entry.name for entry in entries_of(way[0])] == [b"z"]


# Permissions.


def test_unreadable_directories() -> None:
    with world_readable_directory() as place:
        root = place / "root"
        fill(root, "closed/x", "listed/x", "listed/y", "passed/x", "open/x")
        modes = {"closed": 0o000, "listed": 0o444, "passed": 0o111, "open": 0o555}  # the same for owner and others
        for name, mode in modes.items():
            (root / name).chmod(mode)
        paths, problems = as_ordinary_user(lambda: walked(root))
        assert paths == [b"/listed", b"/open", b"/open/x"]
        assert kinds(problems) == [
            (b"/closed", "unreadable"),
            (b"/listed/x", "unreadable"),
            (b"/listed/y", "unreadable"),
            (b"/passed", "unreadable"),
        ]
        assert {problem.reason for problem in problems} == {"permission denied"}
        for name in modes:
            (root / name).chmod(0o755)


def test_unreadable_root() -> None:
    with world_readable_directory() as place:
        closed = place / "closed"
        closed.mkdir(mode=0o700 if IS_ROOT else 0)

        def refused() -> str:
            with pytest.raises(ArchiverError) as caught:
                walked(closed)
            return str(caught.value)

        assert as_ordinary_user(refused) == f"cannot open source {closed}: permission denied"


# Mount points.


def mounted(kind: bytes, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    mount(kind, target, kind)


def test_mount_points(root: Path) -> None:
    def work() -> Any:
        mounted(b"tmpfs", root / "m")
        (root / "m").chmod(0o751)
        fill(root, "m/inside", "z")
        mounted(b"tmpfs", root / "m/n")
        fill(root, "m/n/inside")
        outer, inner = ((root / name).stat().st_dev for name in ("m", "m/n"))
        with Walk(os.fsencode(root), WalkOptions(), lambda problem: None) as walk:
            top = walk.open_root()
            closed = walk.enter(top.look(b"m"))
            assert closed is not None
            facts = (closed.fd, closed.names, closed.metadata.stat.mode)
            walk.leave()
            assert top.look(b"z").name == b"z"
        return [
            walked(root),
            walked(root, WalkOptions(all_file_systems=True)),
            walked(root, WalkOptions(include_dev=frozenset([outer]))),
            walked(root, WalkOptions(include_dev=frozenset([outer, inner]))),
            walked(root, WalkOptions(include_dev=frozenset([inner]))),
            walked(root / "m"),
            facts,
        ]

    default, everything, one, both, hidden, itself, facts = with_mounts(work)
    assert default[0] == [b"/m", b"/z"]
    assert kinds(default[1]) == [(b"/m", "mount")]
    assert facts == (-1, [], st.S_IFDIR | 0o751)
    assert everything == ([b"/m", b"/m/inside", b"/m/n", b"/m/n/inside", b"/z"], [])
    assert one[0] == [b"/m", b"/m/inside", b"/m/n", b"/z"]
    assert kinds(one[1]) == [(b"/m/n", "mount")]
    assert both == everything
    assert hidden == default
    assert itself[0] == [b"/inside", b"/n"]
    assert kinds(itself[1]) == [(b"/n", "mount")]


def test_mount_point_that_fails_after_it_was_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def work() -> Any:
        mounted(b"tmpfs", root / "m")
        problems: list[Problem] = []
        with Walk(os.fsencode(root), WalkOptions(all_file_systems=True), problems.append) as walk:
            top = walk.open_root()
            monkeypatch.setattr(linux, "filesystem_type", fail)
            before = descriptors()
            return walk.enter(top.look(b"m")), problems, descriptors() - before

    assert with_mounts(work) == (None, [Problem(b"/m", "input/output error", "unreadable")], set())


def test_virtual_file_systems_are_never_entered(root: Path) -> None:
    def work() -> Any:
        for kind in (b"proc", b"sysfs", b"devpts", b"mqueue"):
            try:
                mounted(kind, root / kind.decode())
            except OSError:
                return pytest.skip.Exception(f"no privilege to mount {kind.decode()}")
        devices = frozenset(path.stat().st_dev for path in root.iterdir())
        return [walked(root, WalkOptions(all_file_systems=True)), walked(root, WalkOptions(include_dev=devices))]

    for paths, problems in with_mounts(work):
        assert paths == [b"/devpts", b"/mqueue", b"/proc", b"/sysfs"]
        assert kinds(problems) == [(path, "mount") for path in paths]
        assert all("never entered" in problem.reason for problem in problems)


def test_single_mounted_files_are_files(root: Path) -> None:
    def work() -> Any:
        mounted(b"tmpfs", root / "m")
        fill(root, "m/inside", "here")
        mount(os.fsencode(root / "m/inside"), root / "here", None, flags=MS_BIND)
        with Walk(os.fsencode(root), WalkOptions(), lambda problem: None) as walk:
            top = walk.open_root()
            entry = top.look(b"here")
            fd = os.open(root / "here", os.O_RDONLY)
            with OpenFile(fd, os.fstat(fd)) as file:
                mode = top.metadata_of(b"here", file).stat.mode
            return walked(root)[0], entry.stat.st_dev != top.stat.st_dev, st.S_ISREG(mode)

    assert with_mounts(work) == ([b"/here", b"/m"], True, True)


# What is never entered.


def never(*places: Path) -> WalkOptions:
    return WalkOptions(never_enter=frozenset((place.stat().st_dev, place.stat().st_ino) for place in places))


def test_never_enter(root: Path) -> None:
    fill(root, "store/chunks/x", "store/y", "other/store/z")
    (root / "store").chmod(0o705)
    (root / "link").symlink_to("store")
    paths, problems = walked(root, never(root / "store"))
    assert paths == [b"/link", b"/other", b"/other/store", b"/other/store/z", b"/store"]
    assert kinds(problems) == [(b"/store", "skipped")]
    with Walk(os.fsencode(root), never(root / "store"), lambda problem: None) as walk:
        top = walk.open_root()
        closed = walk.enter(top.look(b"store"))
        assert closed is not None
        assert (closed.fd, closed.names, closed.metadata.stat.mode) == (-1, [], st.S_IFDIR | 0o705)


def test_source_inside_of_what_is_never_entered(root: Path, tmp_path: Path) -> None:
    fill(root, "store/a/b/")
    (tmp_path / "link").symlink_to(root / "store/a/b")
    before = descriptors()
    for place in (root / "store", root / "store/a", root / "store/a/b", tmp_path / "link"):
        with pytest.raises(UsageError, match="never archived"):
            walked(place, never(root / "store"))
    assert descriptors() == before
    with pytest.raises(UsageError, match="never archived"):
        walked(root, never(Path("/")))
    assert walked(root / "store", never(root / "store/a/b"))[0] == [b"/a", b"/a/b"]


def test_never_enter_by_another_way(root: Path) -> None:
    def work() -> Any:
        fill(root, "bound/", "store/x")
        mount(os.fsencode(root / "store"), root / "bound", None, flags=MS_BIND)
        return walked(root, never(root / "store"))

    paths, problems = with_mounts(work)
    assert paths == [b"/bound", b"/store"]
    assert kinds(problems) == [(b"/bound", "skipped"), (b"/store", "skipped")]


def test_directory_swapped_for_the_store(root: Path) -> None:
    """The rule holds for what was opened, not for what was listed."""
    fill(root, "store/x", "d/y")
    problems: list[Problem] = []
    with Walk(os.fsencode(root), never(root / "store"), problems.append) as guarded:
        listed = guarded.open_root().look(b"d")
        shutil.rmtree(root / "d")
        (root / "store").rename(root / "d")
        closed = guarded.enter(listed)
        assert closed is not None and closed.names == [] and closed.fd == -1
    assert kinds(problems) == [(b"/d", "skipped")]


def test_a_closed_directory_at_the_bottom_of_a_deep_tree(root: Path) -> None:
    """The way back does not start at a descriptor that was never kept."""
    fill(root, "d/" * 70 + "store/x", "d/" * 70 + "z", "d/z", "z")
    paths, problems = walked(root, never(root / ("d/" * 70 + "store")))
    assert paths == [
        *(b"/d" * level for level in range(1, 71)),
        b"/d" * 70 + b"/store",
        b"/d" * 70 + b"/z",
        b"/d/z",
        b"/z",
    ]
    assert len(problems) == 1


def test_private_mounts_of_others_are_no_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FUSE mount may refuse even lstat; what it is can still be known."""
    fill(root, "a", "private")
    problems: list[Problem] = []
    lstat = os.stat

    def refusing(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        if path == b"private":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return lstat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    with Walk(os.fsencode(root), WalkOptions(), problems.append) as foreign:
        top = foreign.open_root()
        monkeypatch.setattr(os, "stat", refusing)
        assert [entry.name for entry in entries_of(top)] == [b"a"]
        monkeypatch.setattr(linux, "device_of", lambda name, fd: top.stat.st_dev + 1)
        assert [entry.name for entry in entries_of(top)] == [b"a"]
        monkeypatch.undo()
    assert kinds(problems) == [(b"/private", "unreadable"), (b"/private", "mount")]


def test_entries_are_named_tuples_of_name_and_lstat(root: Path, walk: Walk) -> None:
    (root / "link").symlink_to("nowhere")
    (entry,) = entries_of(walk.open_root())
    assert isinstance(entry, SourceEntry)
    assert (entry.name, st.S_ISLNK(entry.stat.st_mode)) == (b"link", True)
