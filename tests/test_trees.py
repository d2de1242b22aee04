"""The test trees hold what they promise, and the comparison sees every difference it exists for."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attributes import (
    APPEND,
    IMMUTABLE,
    NOATIME,
    NODUMP,
    acl_value,
    capability_value,
    remove_tree,
    set_flags,
    unlock_tree,
    write_sparse,
)
from tests.compare import MAX_OPEN, NOT_KEPT, Description, compare_descriptions, differences, snapshot_tree, walk
from tests.trees import NOBODY, ODD_NAMES, build_features, build_plain, mutate

PROJECT = Path(__file__).parent.parent
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory whose content is deleted at the end, immutable entries included."""
    yield tmp_path
    unlock_tree(tmp_path)
    for path in tmp_path.iterdir():
        shutil.rmtree(path)


@pytest.fixture
def pair(place: Path) -> tuple[Path, Path]:
    """Two equal small trees."""
    for name in ("a", "b"):
        _small(place / name)
    assert differences(place / "a", place / "b", ignore=()) == []
    return place / "a", place / "b"


def _small(root: Path) -> None:
    root.mkdir()
    (root / "dir").mkdir()
    (root / "dir" / "file").write_bytes(b"x" * 3_000_000)
    (root / "empty").write_bytes(b"")
    (root / "link").symlink_to("dir/file")
    (root / "hard").write_bytes(b"linked")
    os.link(root / "hard", root / "dir" / "hard-too")
    os.mkfifo(root / "pipe")
    write_sparse(root / "sparse", 1 << 24, {1 << 23: b"data"})
    os.setxattr(root / "empty", "user.key", b"value")
    for path in (*root.rglob("*"), root):
        os.utime(path, ns=(0, 1_700_000_000_123_456_789), follow_symlinks=False)


def _same_time(path: Path, change: Callable[[], object]) -> None:
    """Run ``change`` and put the mtimes of ``path`` and its directory back."""
    before = [(where, where.lstat().st_mtime_ns) for where in (path, path.parent)]
    change()
    for where, moment in before:
        if os.path.lexists(where) and where.lstat().st_mtime_ns != moment:
            os.utime(where, ns=(0, moment), follow_symlinks=False)


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)
    os.utime(path, ns=(0, 1_700_000_000_123_456_789), follow_symlinks=False)


CHANGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "mode": ("dir/file", lambda path: path.chmod(0o4644), "'dir/file': mode: 0o100644 != 0o104644"),
    "one nanosecond": (
        "dir/file",
        lambda path: os.utime(path, ns=(0, 1_700_000_000_123_456_790)),
        "'dir/file': mtime: 1700000000123456789 != 1700000000123456790",
    ),
    "mtime of a symlink": ("link", lambda path: os.utime(path, ns=(0, 0), follow_symlinks=False), "'link': mtime"),
    "mtime of the root": ("", lambda path: os.utime(path, ns=(0, 5)), "'.': mtime"),
    "mode of the root": ("", lambda path: path.chmod(0o700), "'.': mode"),
    "xattr of the root": ("", lambda path: os.setxattr(path, "user.r", b""), "'.': xattr:user.r: absent != "),
    "first byte": ("dir/file", lambda path: _overwrite(path, 0, b"y"), "'dir/file': content"),
    "last byte": ("dir/file", lambda path: _overwrite(path, 2_999_999, b"y"), "'dir/file': content"),
    "swapped blocks": ("sparse", lambda path: write_sparse(path, 1 << 24, {1 << 22: b"data"}), "'sparse': content"),
    "one byte in a hole": ("sparse", lambda path: _overwrite(path, (1 << 24) - 1, b"\1"), "'sparse': content"),
    "longer by a hole": ("sparse", lambda path: os.truncate(path, (1 << 24) + 1), "'sparse': size"),
    "missing": ("empty", lambda path: path.unlink(), "'empty': only in the first tree"),
    "added": ("dir/new\n", lambda path: path.write_bytes(b""), "'dir/new\\n': only in the second tree"),
    "other type": ("pipe", lambda path: _replace(path, Path.mkdir), "'pipe': type: prw-r--r-- != drwxr-xr-x"),
    "symlink target": ("link", lambda path: _replace(path, lambda p: p.symlink_to("dir/filf")), "'link': target"),
    "xattr value": (
        "empty",
        lambda path: os.setxattr(path, "user.key", b"valuf"),
        "'empty': xattr:user.key: 76616c7565",
    ),
    "xattr emptied": ("empty", lambda path: os.setxattr(path, "user.key", b""), "'empty': xattr:user.key"),
    "xattr gone": (
        "empty",
        lambda path: os.removexattr(path, "user.key"),
        "'empty': xattr:user.key: 76616c7565 != absent",
    ),
    "access ACL": (
        "dir/file",
        lambda path: os.setxattr(
            path,
            "system.posix_acl_access",
            acl_value((1, 6, 2**32 - 1), (2, 4, 7), (4, 4, 2**32 - 1), (0x10, 4, 2**32 - 1), (0x20, 4, 2**32 - 1)),
        ),
        "'dir/file': xattr:system.posix_acl_access: absent",
    ),
    "default ACL": (
        "dir",
        lambda path: os.setxattr(
            path, "system.posix_acl_default", acl_value((1, 7, 2**32 - 1), (4, 5, 2**32 - 1), (0x20, 5, 2**32 - 1))
        ),
        "'dir': xattr:system.posix_acl_default: absent",
    ),
    "flag of a file": ("empty", lambda path: set_flags(path, NOATIME), "'empty': flags: 0x0 != 0x80"),
    "flag of a directory": ("dir", lambda path: set_flags(path, NOATIME), "'dir': flags: 0x0 != 0x80"),
    "broken hard link": (
        "dir/hard-too",
        lambda path: _replace(path, lambda p: p.write_bytes(b"linked")),
        "'hard': links: 'dir/hard-too' != None",
    ),
}
PRIVILEGED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "uid": ("empty", lambda path: os.chown(path, 2**32 - 2, -1), "'empty': uid: 0 != 4294967294"),
    "gid of a symlink": ("link", lambda path: os.lchown(path, -1, 77), "'link': gid: 0 != 77"),
    "trusted": ("empty", lambda path: os.setxattr(path, "trusted.t", b""), "'empty': xattr:trusted.t: absent"),
    "capability": (
        "empty",
        lambda path: os.setxattr(path, "security.capability", capability_value(1 << 13)),
        "'empty': xattr:security.capability: absent",
    ),
    "immutable": ("dir", lambda path: set_flags(path, IMMUTABLE), "'dir': flags: 0x0 != 0x10"),
    "append only": ("dir/file", lambda path: set_flags(path, APPEND), "'dir/file': flags: 0x0 != 0x20"),
}


@pytest.mark.parametrize("name", [*CHANGES, *(pytest.param(name, marks=needs_root) for name in PRIVILEGED)])
def test_one_difference_is_one_line(pair: tuple[Path, Path], name: str) -> None:
    where, change, expected = (CHANGES | PRIVILEGED)[name]
    path = pair[1] / where
    try:
        if name.startswith(("mtime", "one nano")):
            change(path)
        else:
            _same_time(path if os.path.lexists(path) else path.parent / "hard-too", lambda: change(path))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        pytest.skip(f"this file system: {error}")
    lines = differences(*pair)
    assert any(line.startswith(expected) for line in lines), lines
    # a removed or replaced name may change a group of links or the type: never more than the entry and its group
    assert len(lines) <= (3 if name == "broken hard link" else 1), lines
    assert differences(pair[0], pair[0]) == []


@needs_root
def test_device_numbers(place: Path) -> None:
    for name, minor in (("a", 3), ("b", 5)):
        (place / name).mkdir()
        try:
            os.mknod(place / name / "null", stat.S_IFCHR | 0o600, os.makedev(1, minor))
        except PermissionError:
            pytest.skip("device nodes are not allowed here")
    assert differences(place / "a", place / "b", ignore=NOT_KEPT | {"mtime"}) == ["'null': rdev: [1, 3] != [1, 5]"]


def test_what_archives_do_not_keep_is_ignored_by_default_only(pair: tuple[Path, Path]) -> None:
    b = pair[1]
    _same_time(b / "pipe", lambda: os.link(b / "pipe", b / "dir" / "pipe"))
    lines = differences(*pair, ignore={"mtime"})
    assert "'pipe': special-links: None != 'dir/pipe'" in lines
    assert not any("special-links" in line for line in differences(*pair))
    try:
        set_flags(b / "empty", NODUMP)
    except OSError as error:
        pytest.skip(f"this file system: {error}")
    assert "'empty': nodump: False != True" in differences(*pair, ignore=())
    assert not any("nodump" in line or "flags" in line for line in differences(*pair))


def test_options(pair: tuple[Path, Path]) -> None:
    a, b = pair
    _same_time(b / "dir" / "file", lambda: _overwrite(b / "dir" / "file", 5, b"y"))
    assert differences(a, b, content=False) == []
    assert differences(a, b, ignore=NOT_KEPT | {"content"}) == []
    os.setxattr(b / "empty", "user.extra", b"1")
    assert differences(a, b, ignore={"content", "xattr:user.extra"}) == []
    assert len(differences(a, b, ignore={"content", "xattrs"})) == 0
    with pytest.raises(ValueError, match="mtimes"):
        differences(a, b, ignore={"mtimes"})


def test_allocation(pair: tuple[Path, Path]) -> None:
    a, b = pair
    assert differences(a, b, sparse_slack=0) == []
    _same_time(b / "sparse", lambda: _overwrite(b / "sparse", 1 << 20, bytes(1 << 20)))  # zeros instead of a hole
    assert differences(a, b) == []
    assert [line.split(": ")[0] for line in differences(a, b, sparse_slack=8192)] == ["'sparse'"]
    assert differences(a, b, sparse_slack=1 << 21) == []
    assert differences(b, a, sparse_slack=0) == []


def test_a_description_is_json_and_compares_over_time(pair: tuple[Path, Path]) -> None:
    before: Description = json.loads(json.dumps(snapshot_tree(pair[0])))
    assert compare_descriptions(before, snapshot_tree(pair[0]), ignore=()) == []
    (pair[0] / "empty").write_bytes(b"1")
    assert {line.split(":")[1] for line in compare_descriptions(before, snapshot_tree(pair[0]), ignore={"mtime"})} == {
        " size",
        " content",
    }


def test_reading_changes_no_access_time(pair: tuple[Path, Path]) -> None:
    path = pair[0] / "dir" / "file"
    os.utime(path, ns=(5, path.stat().st_mtime_ns))
    snapshot_tree(pair[0])
    assert path.stat().st_atime_ns == 5


def test_deep_tree_with_few_descriptors(place: Path) -> None:
    """500 levels of 30 bytes: far above PATH_MAX, and more levels than directories may be open."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(500):
        for name in (f"{level:a>30}", "z-after"):
            os.mkdir(name, dir_fd=fd)
        below = os.open(f"{level:a>30}", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    already = len(os.listdir("/proc/self/fd"))
    paths = []
    for found in walk(place):
        paths.append(found.path)
        assert len(os.listdir("/proc/self/fd")) <= already + MAX_OPEN + 1
    assert len(paths) == len(set(paths)) == 1001
    assert max(map(len, paths)) == 500 * 31 - 1
    assert paths[1:] == sorted(paths[1:])
    assert len(os.listdir("/proc/self/fd")) == already
    assert differences(place, place) == []


def _as_nobody(work: Callable[[], object]) -> Any:
    """What ``work()`` returns (as JSON) in a child process that is an ordinary user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: its /proc/self belongs to it again
            result = json.dumps(work())
        except BaseException:
            result = json.dumps({"failed": traceback.format_exc()})
        with os.fdopen(writing, "w") as pipe:
            pipe.write(result)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        result = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert not (isinstance(result, dict) and "failed" in result), result["failed"]
    return result


def _let_in(place: Path) -> None:
    """Let everybody reach ``place``: pytest makes its directories private."""
    for path in (place, *place.parents):
        if path.stat().st_mode & 0o001 == 0:
            path.chmod(path.stat().st_mode | 0o011)


@needs_root
def test_what_cannot_be_read_is_a_difference(place: Path) -> None:
    for name in ("a", "b"):
        _small(place / name)
        (place / name / "dir" / "file").chmod(0)
        (place / name / "dir").chmod(0o711)
    _let_in(place)
    assert _as_nobody(lambda: differences(place / "a", place / "b")) == [
        "'dir': entries could not be read: Permission denied != Permission denied",
        "'dir': flags could not be read: Permission denied != Permission denied",
        "'dir': project could not be read: Permission denied != Permission denied",
    ]


def test_independent_of_the_program() -> None:
    code = (
        "import sys, tests.compare, tests.trees, tests.attributes, tests.random_trees\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('archiver', 'formats')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# What this machine's kernel and file system may refuse; anything else in the notes is a mistake of the builder.
REFUSABLE = (
    "project id",
    "chattr",
    "xattr value of 40960",
    "xattr value of 16384",
    "mtime",
    "char device",
    "block device",
)


def _check_features(tree: Description, *, as_root: bool, many: int) -> None:
    paths = {bytes.fromhex(key): entry for key, entry in tree.items()}
    kinds = {stat.S_IFMT(entry["mode"]) for entry in tree.values()}
    wanted = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK}
    assert wanted <= kinds
    assert sum(path.startswith(b"many/") for path in paths) == many
    assert max(map(len, paths)) == 4000
    assert {path.rsplit(b"/", 1)[-1] for path in paths} >= set(ODD_NAMES)
    assert paths[b"directories/deep" + b"/d" * 100 + b"/bottom"]["size"] == 8
    assert len(bytes.fromhex(paths[b"symlinks/long"]["target"])) == 4095
    groups = {entry["link"] for entry in tree.values()} - {None}
    assert len(groups) >= 7  # five of files, the symlink, the fifo (the long path may be refused)
    assert paths[b"links/b"]["link"] == b"links/a".hex()
    assert paths[b"times/minus-1.5s"]["mtime_ns"] == -1_500_000_000
    modes = {entry["mode"] & 0o7000 for entry in tree.values()}
    assert {0o1000, 0o4000, 0o2000, 0o6000, 0o7000} <= modes
    attributes = {bytes.fromhex(name) for entry in tree.values() for name in entry["xattrs"]}
    assert {b"user.empty", b"user.\xff\xfe", b"system.posix_acl_access", b"system.posix_acl_default"} <= attributes
    assert paths[b"sparse/all-hole"]["allocated"] == 0
    assert all(
        entry["allocated"] < entry["size"] // 2
        for path, entry in paths.items()
        if path.startswith(b"sparse/") and path != b"sparse/alternating" and entry["size"]
    )
    assert paths[b"files/zeros"]["allocated"] >= 1 << 20
    if as_root:
        assert {b"security.capability", b"trusted.secret"} <= attributes
        assert {entry["uid"] for entry in tree.values()} >= {0, 1000, 2**31, 2**32 - 2}
        assert paths[b"forbidden/directory-000/file"]["mode"] == stat.S_IFREG


@needs_root
def test_features_as_root(place: Path) -> None:
    notes = build_features(place / "a", as_root=True)
    assert [note for note in notes if not note.startswith(REFUSABLE)] == []
    tree = snapshot_tree(place / "a")
    _check_features(tree, as_root=True, many=2000)
    assert not any(entry["errors"] for entry in tree.values())
    # built again, all but the times of building is the same
    assert build_features(place / "b", as_root=True) == notes
    assert differences(place / "a", place / "b", ignore={"mtime"}, sparse_slack=65536) == []


@needs_root
def test_features_survive_cp(place: Path) -> None:
    """cp -a keeps all but chattr flags: neither side of the comparison sees something that is not there."""
    build_features(place / "a", as_root=True)
    done = subprocess.run(["cp", "-a", "--sparse=always", "a", "b"], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert differences(place / "a", place / "b", ignore={"flags", "nodump", "project"}, sparse_slack=65536) == []


@needs_root
def test_features_as_an_ordinary_user(place: Path) -> None:
    _let_in(place)
    (place / "home").mkdir()
    os.chown(place / "home", NOBODY, NOBODY)
    tree = place / "home" / "tree"

    def build_and_remove() -> tuple[list[str], Description]:
        notes = build_features(tree, as_root=False)
        description = snapshot_tree(tree)
        assert differences(tree, tree) == []
        remove_tree(tree)
        return notes, description

    notes, description = _as_nobody(build_and_remove)
    assert not tree.exists()
    assert [note for note in notes if not note.startswith(REFUSABLE)] == []
    _check_features(description, as_root=False, many=2000)
    assert {entry["uid"] for entry in description.values()} == {NOBODY}


@needs_root
def test_large_xattrs_where_the_file_system_takes_them(tmp_path: Path) -> None:
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(200 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-qF", "-b4096", "-I256", "-Oea_inode", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no loop-mounted ext4: {error}")
    try:
        build_features(mount / "tree", as_root=True)
        entry = snapshot_tree(mount / "tree")[b"xattrs/large-value".hex()]
        assert len(bytes.fromhex(entry["xattrs"][b"user.large".hex()])) == 40 << 10
    finally:
        subprocess.run(["umount", mount], check=True)


@needs_root
def test_huge(place: Path) -> None:
    build_features(place / "a", as_root=True, huge=True)
    tree = snapshot_tree(place / "a")
    _check_features(tree, as_root=True, many=20_000)
    entry = tree[b"sparse/five-gib".hex()]
    assert entry["size"] == 5 << 30
    assert entry["allocated"] < 1 << 20


@needs_root
def test_unlocking(place: Path) -> None:
    build_features(place / "a", as_root=True)
    with pytest.raises(PermissionError):
        shutil.rmtree(place / "a")
    unlock_tree(place / "a")
    shutil.rmtree(place / "a")
    assert not (place / "a").exists()


def test_plain_trees_are_reproducible(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build_plain(tmp_path / name, seed, 60)
    assert differences(tmp_path / "a", tmp_path / "b", ignore=()) == []
    assert differences(tmp_path / "a", tmp_path / "c")
    assert sum(path.is_file() for path in (tmp_path / "a").rglob("*")) == 60


def test_mutations_are_reproducible_and_complete(tmp_path: Path) -> None:
    for name in ("a", "b", "old"):
        build_plain(tmp_path / name, 1, 200)
    for seed in range(5):
        done = mutate(tmp_path / "a", seed, 22)
        assert mutate(tmp_path / "b", seed, 22) == done
        assert len({line.split()[0] for line in done}) == 11
        assert differences(tmp_path / "a", tmp_path / "b", ignore=()) == []
        assert differences(tmp_path / "a", tmp_path / "old")
    remove_tree(tmp_path / "a")
    assert mutate(tmp_path / "b", 99) != mutate(tmp_path / "old", 99)


def test_each_mutation_shows(tmp_path: Path) -> None:
    """One change at a time: always visible, and the size stays for a rewrite."""
    root = tmp_path / "tree"
    build_plain(root, 3, 40)
    for seed in range(40):
        before = snapshot_tree(root)
        (line,) = mutate(root, seed, 1)
        kind, _, name = line.partition(" ")
        after = snapshot_tree(root)
        assert compare_descriptions(before, after), line
        key = os.fsencode(name).hex()
        if kind == "rewrite":
            assert before[key]["size"] == after[key]["size"]
            assert before[key]["mtime_ns"] < after[key]["mtime_ns"]
        if kind in ("delete", "rename", "rename-directory"):
            assert key not in after
