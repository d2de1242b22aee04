"""Values that are harmless to read and dangerous to apply: each is refused and named, everything else is restored."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NoReturn, TypedDict

import pytest

from archiver.core import linux
from archiver.restore.run import RestoreResult
from archiver.restore.staging import staged_name
from archiver.store.store import Store
from tests.hostile.writer import (
    ACL_GROUP_OBJ,
    ACL_USER,
    CHR,
    DIR,
    FIFO,
    LNK,
    QUOTA_PROJID,
    REG,
    XATTR,
    Writer,
    item_bytes,
    words,
)
from tests.restore.planted import plant, restored
from tests.source.sandbox import IS_ROOT
from tests.stores import make_store

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")


class Owner(TypedDict):
    uid: int
    gid: int


OURS: Owner = {"uid": os.getuid(), "gid": os.getgid()}
NOBODY_AT_ALL = 2**32 - 1  # to chown: leave the owner as it is


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


def bring_out(store: Path, writer: Writer, target: Path) -> RestoreResult:
    writer.file(b"zz-last", b"all is well", **OURS)
    writer.finish()
    with Store.open(store) as opened:
        payload = bytes(writer.payload) if writer.version == 2 else None
        result = restored(opened, plant(opened, 1, bytes(writer.archive), payload), target)
    assert (target / "zz-last").read_bytes() == b"all is well"
    assert "different" not in result.kinds
    return result


def told(result: RestoreResult) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for problem in result.problems:
        found.setdefault(os.fsdecode(problem.path), []).append(problem.reason)
    return found


@pytest.fixture(params=[1, 2])
def writer(request: pytest.FixtureRequest) -> Writer:
    new = Writer(request.param)
    new.root(**OURS)
    return new


@needs_root
def test_an_owner_that_means_unchanged(store: Path, tmp_path: Path, writer: Writer) -> None:
    """Such files would stay root's: with the set-id bits they came with they would be a gift."""
    nobody: Owner = {"uid": NOBODY_AT_ALL, "gid": NOBODY_AT_ALL}
    writer.file(b"both", mode=REG | 0o6755, **nobody)
    writer.file(b"group", mode=REG | 0o2755, uid=0, gid=NOBODY_AT_ALL)
    writer.directory(b"directory", DIR | 0o2000, **nobody)
    writer.close()
    writer.special(b"fifo", FIFO | 0o6000, **nobody)
    writer.symlink(b"link", b"target")
    result = bring_out(store, writer, tmp_path / "out")
    assert told(result).keys() == {"/both", "/group", "/directory", "/fifo"}
    for name in ("both", "group", "directory", "fifo"):
        assert (tmp_path / "out" / name).stat().st_mode & 0o6000 == 0, name


@needs_root
def test_set_ids_come_after_the_owner(store: Path, tmp_path: Path, writer: Writer) -> None:
    writer.file(b"program", mode=REG | 0o6755, uid=1234, gid=5678)
    assert bring_out(store, writer, tmp_path / "out").problems == []
    status = (tmp_path / "out/program").stat()
    assert (status.st_mode, status.st_uid, status.st_gid) == (REG & ~0o777 | 0o6755, 1234, 5678)


@pytest.mark.parametrize("seconds", [-(2**63), 2**63 - 1, 2**40, -(2**40)])
def test_far_times(store: Path, tmp_path: Path, writer: Writer, seconds: int) -> None:
    """The file system keeps what it can."""
    writer.file(b"file", secs=seconds, nanos=999_999_999, **OURS)
    writer.special(b"fifo", FIFO, secs=seconds, **OURS)
    assert bring_out(store, writer, tmp_path / "out").problems == []
    assert (tmp_path / "out/file").read_bytes() == b"data"


@pytest.mark.parametrize("number", [(2**64 - 1, 2**64 - 1), (2**32 - 1, 2**32 - 1), (4096, 0), (0, 2**20), (2**31, 1)])
def test_device_numbers_that_do_not_exist(store: Path, tmp_path: Path, writer: Writer, number: tuple[int, int]) -> None:
    writer.special(b"device", CHR, number, **OURS)
    result = bring_out(store, writer, tmp_path / "out")
    assert result.kinds == {"not-restored": 1} and told(result).keys() == {"/device"}
    assert not os.path.lexists(tmp_path / "out/device")


def test_attributes_that_belong_to_the_machine(store: Path, tmp_path: Path, writer: Writer) -> None:
    """Labels, signatures, and back doors to what has a place of its own in an archive."""
    names = [b"security.selinux", b"security.ima", b"security.capability", b"system.posix_acl_access", b"other.x"]
    attributes = b"".join(item_bytes(XATTR, name + b"\0value") for name in names)
    kept = item_bytes(XATTR, b"user.kept\0yes") + item_bytes(XATTR, b"user.large\0" + bytes(65000))
    writer.file(b"file", attributes=attributes + kept, **OURS)
    result = bring_out(store, writer, tmp_path / "out")
    reasons = told(result).pop("/file")
    for name in names:
        assert any(os.fsdecode(name) in reason for reason in reasons), name
    assert set(os.listxattr(tmp_path / "out/file")) <= {"user.kept", "user.large", "security.selinux"}
    assert os.getxattr(tmp_path / "out/file", "user.kept") == b"yes"


def test_what_no_kernel_can_hold(store: Path, tmp_path: Path, writer: Writer) -> None:
    """An ACL or project id out of range costs itself, not the restore."""
    writer.file(b"acl", attributes=item_bytes(ACL_USER, words(2**40, 7)), **OURS)
    writer.file(b"permissions", attributes=item_bytes(ACL_GROUP_OBJ, words(2**63)), **OURS)
    writer.file(b"project", attributes=item_bytes(QUOTA_PROJID, words(2**64 - 1)), **OURS)
    writer.directory(b"directory", **OURS)
    writer.raw(item_bytes(ACL_USER, words(1, 99)))
    writer.close()
    result = bring_out(store, writer, tmp_path / "out")
    assert result.kinds.keys() == {"attribute"}
    assert told(result).keys() == {"/acl", "/permissions", "/project", "/directory"}


def test_sizes_without_contents(store: Path, tmp_path: Path) -> None:
    """A declared size of 2^62 with a payload of some bytes: that file is lost, nothing is allocated for it."""
    writer = Writer(2)
    writer.root(**OURS)
    writer.name(b"early")
    writer.entry(REG, **OURS)
    writer.reference(writer.payload_item(0x28147A1B0B7C1A25, b"tiny", size=16 + 2**62), 2**62)
    writer.finish()
    with Store.open(store) as opened:
        ref = plant(opened, 1, bytes(writer.archive), bytes(writer.payload))
        result = restored(opened, ref, tmp_path / "out")
    assert result.kinds == {"damaged": 1} and told(result).keys() == {"/early"}
    assert os.listdir(tmp_path / "out") == []


def test_what_the_target_has_already(store: Path, tmp_path: Path, writer: Writer) -> None:
    """An existing empty directory with rights and defaults of its own ends as the archive says."""
    out = tmp_path / "out"
    out.mkdir(mode=0o777)
    acl = b"\x02\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + b"\x07\0" + owner.to_bytes(4, "little")
        for tag, owner in ((1, 2**32 - 1), (2, 1000), (4, 2**32 - 1), (16, 2**32 - 1), (32, 2**32 - 1))
    )
    try:
        for name in ("system.posix_acl_access", "system.posix_acl_default"):
            os.setxattr(out, name, acl)
    except OSError:
        pytest.skip("the file system has no ACLs")
    writer.directory(b"directory", **OURS)
    writer.file(b"file", **OURS)
    writer.close()
    assert bring_out(store, writer, out).problems == []
    for path in (out, out / "directory", out / "directory/file"):
        assert [name for name in os.listxattr(path) if "acl" in name] == [], path
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["fifo", "socket"])
def test_a_special_file_swapped_for_a_symlink(
    store: Path, tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Who owns the target directory may exchange names in it; what they point to keeps its rights."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"private")
    victim.chmod(0o600)
    before = victim.stat()
    real = linux.make_node

    def make_node(name: bytes, mode: int, major: int, minor: int, *, dir_fd: int) -> None:
        real(name, mode, major, minor, dir_fd=dir_fd)
        os.unlink(name, dir_fd=dir_fd)
        os.symlink(victim, name, dir_fd=dir_fd)

    monkeypatch.setattr("archiver.core.linux.make_node", make_node)
    writer.special(kind.encode(), FIFO | 0o777 if kind == "fifo" else 0o140777, **OURS)
    writer.file(b"zz-last", b"all is well", **OURS)
    writer.finish()
    with Store.open(store) as opened:
        payload = bytes(writer.payload) if writer.version == 2 else None
        restored(opened, plant(opened, 1, bytes(writer.archive), payload), tmp_path / "out")
    after = victim.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (before.st_mode, before.st_mtime_ns, before.st_uid)


@pytest.mark.parametrize("swap", ["directory", "symlink"])
def test_a_directory_swapped_while_it_is_made(
    store: Path, tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    """A directory that turns into a symlink before it is opened is not entered."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    real = os.mkdir

    def mkdir(path: object, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(path, mode, dir_fd=dir_fd)  # type: ignore[arg-type]
        if isinstance(path, bytes) and path in (b"swapped", staged_name(b"swapped")):
            os.rmdir(path, dir_fd=dir_fd)
            if swap == "symlink":
                os.symlink(elsewhere, path, dir_fd=dir_fd)
            else:
                (elsewhere / "inner").mkdir()
                os.symlink(elsewhere / "inner", path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", mkdir)
    writer.directory(b"swapped", **OURS)
    writer.file(b"evil", **OURS)
    writer.directory(b"below", **OURS)
    writer.file(b"evil", **OURS)
    writer.close()
    writer.close()
    result = bring_out(store, writer, tmp_path / "out")
    assert told(result).keys() == {"/swapped"}
    assert [path for path in elsewhere.rglob("*") if path.name != "inner"] == []


def test_attributes_that_the_target_cannot_hold(
    store: Path, tmp_path: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system without project ids and file attributes: named, not fatal."""

    def refused(fd: int, value: int) -> NoReturn:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr(linux, "set_project_id", refused)
    monkeypatch.setattr(linux, "set_flags", refused)
    monkeypatch.setattr(linux, "get_flags", lambda fd: None)
    writer.file(b"project", attributes=item_bytes(QUOTA_PROJID, words(7)), **OURS)
    writer.file(b"flags", flags=0x2_0000, **OURS)  # no access times
    result = bring_out(store, writer, tmp_path / "out")
    assert result.kinds.keys() == {"attribute"}
    assert told(result).keys() == {"/project", "/flags"}


def test_links_to_links(store: Path, tmp_path: Path, writer: Writer) -> None:
    """Linked to whatever stands at the path inside the target, never to what a symlink there points to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"outside")
    link = writer.special(b"a", LNK, **OURS)
    writer.item(0x27F971E7DBF5DC5F, os.fsencode(victim) + b"\0")
    writer.hardlink(b"b", b"a", link)
    first = writer.symlink(b"c", os.fsencode(tmp_path))
    writer.hardlink(b"d", b"c/victim", first)
    result = bring_out(store, writer, tmp_path / "out")
    assert told(result).keys() == {"/d"}
    assert victim.stat().st_nlink == 1
    assert (tmp_path / "out/b").is_symlink()
