from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.core import linux
from tests.source.sandbox import IS_ROOT, mount, with_mounts

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root may do this")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o644)
    yield fd
    os.close(fd)


def test_flag_tables_follow_the_format() -> None:
    # spec pxar.md 11.3 and 11.4
    assert linux.archive_flags(linux.FS_APPEND_FL) == 0x10000
    assert linux.archive_flags(linux.FS_NOATIME_FL) == 0x20000
    assert linux.archive_flags(linux.FS_COMPR_FL) == 0x40000
    assert linux.archive_flags(linux.FS_NOCOW_FL) == 0x80000
    assert linux.archive_flags(linux.FS_NODUMP_FL) == 0x100000
    assert linux.archive_flags(linux.FS_DIRSYNC_FL) == 0x200000
    assert linux.archive_flags(linux.FS_IMMUTABLE_FL) == 0x400000
    assert linux.archive_flags(linux.FS_SYNC_FL) == 0x800000
    assert linux.archive_flags(linux.FS_NOCOMP_FL) == 0x1000000
    assert linux.archive_flags(linux.FS_PROJINHERIT_FL) == 0x2000000
    assert linux.archive_flags(0, 2 | 4 | 32) == 0x2000 | 0x4000 | 0x8000


def test_flag_conversion_keeps_what_archives_keep_and_drops_the_rest() -> None:
    extents, encrypted, readonly_fat = 0x80000, 0x800, 1
    assert linux.archive_flags(extents | encrypted, readonly_fat) == 0
    for archived, kernel in linux.CHATTR_BITS:
        assert linux.archive_flags(kernel | extents) == archived
        assert linux.chattr_flags(archived) == kernel
        assert linux.fat_attributes(archived) == 0
    for archived, kernel in linux.FAT_BITS:
        assert linux.archive_flags(extents, kernel | readonly_fat) == archived
        assert linux.fat_attributes(archived) == kernel
        assert linux.chattr_flags(archived) == 0
    everything = linux.archive_flags(0xFFFFFFFF, 0xFF)
    assert linux.chattr_flags(everything) == linux.KEPT_CHATTR
    assert linux.fat_attributes(everything) == linux.KEPT_FAT


def test_chattr_flags_of_a_file(file: int, tmp_path: Path) -> None:
    before = linux.get_flags(file)
    assert before is not None
    linux.set_flags(file, before | linux.FS_NODUMP_FL | linux.FS_NOATIME_FL)
    assert linux.get_flags(file) == before | linux.FS_NODUMP_FL | linux.FS_NOATIME_FL
    listed = subprocess.run(["lsattr", "file"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert set(listed.split()[0]) >= {"d", "A"}


@needs_root
def test_append_and_immutable(file: int) -> None:
    before = linux.get_flags(file) or 0
    linux.set_flags(file, before | linux.FS_APPEND_FL | linux.FS_IMMUTABLE_FL)
    try:
        assert linux.archive_flags(linux.get_flags(file) or 0) == 0x410000
    finally:
        linux.set_flags(file, before)


def test_files_without_flags_or_project_say_so() -> None:
    fd = os.open("/proc/self/stat", os.O_RDONLY)
    try:
        assert linux.get_flags(fd) is None
        assert linux.get_fat_attributes(fd) is None
        assert linux.get_project_id(fd) == 0
    finally:
        os.close(fd)


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(linux, "ioctl", broken)
    for call in (linux.get_flags, linux.get_fat_attributes, linux.get_project_id):
        with pytest.raises(OSError, match="Input/output"):
            call(0)


def test_dos_attributes_are_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    # No FAT file system at hand: check the calls.
    sent = []

    def fat(fd: int, request: int, value: bytes | bytearray) -> None:
        if request == 0x80047210:
            assert isinstance(value, bytearray)
            value[:4] = struct.pack("=I", 0x27)
        else:
            sent.append((request, bytes(value[:4])))

    monkeypatch.setattr(linux, "ioctl", fat)
    assert linux.get_fat_attributes(0) == 0x27
    linux.set_fat_attributes(0, 6)
    assert sent == [(0x40047211, struct.pack("=I", 6))]


@needs_root
def test_project_id_on_a_file_system_that_has_them(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as stream:
        stream.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "project,quota", image], check=True)
    target = tmp_path / "mounted"
    target.mkdir()

    def check() -> tuple[int, int, int]:
        mounted = subprocess.run(["mount", "-o", "loop", image, target], capture_output=True)
        if mounted.returncode != 0:
            return (-1, -1, -1)
        try:
            fd = os.open(target / "file", os.O_RDWR | os.O_CREAT)
            before = linux.get_project_id(fd)
            linux.set_project_id(fd, 4711)
            after, flags = linux.get_project_id(fd), linux.get_flags(fd) or 0
            os.close(fd)
            return before, after, flags & linux.KEPT_CHATTR
        finally:
            subprocess.run(["umount", target], check=True)

    result = with_mounts(check)
    if result == (-1, -1, -1):
        pytest.skip("no privilege to mount a loop device, or a kernel without project quotas")
    assert result == (0, 4711, 0)


def test_project_id_is_the_fourth_word(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = bytearray(struct.pack("=5I8x", 1, 2, 3, 4, 5))

    def kernel(fd: int, request: int, value: bytearray) -> None:
        if request == 0x801C581F:
            value[:] = stored
        else:
            assert request == 0x401C5820
            stored[:] = value

    monkeypatch.setattr(linux, "ioctl", kernel)
    assert linux.get_project_id(0) == 4
    linux.set_project_id(0, 2**32 - 1)
    assert struct.unpack("=5I8x", stored) == (1, 2, 3, 2**32 - 1, 5)


def test_filesystem_type(tmp_path: Path) -> None:
    for path in ("/proc", tmp_path, "/sys", "/dev/shm"):
        fd = os.open(path, os.O_RDONLY)
        try:
            shown = subprocess.run(["stat", "-f", "-c", "%t", path], capture_output=True, text=True, check=True).stdout
            assert linux.filesystem_type(fd) == int(shown, 16)
        finally:
            os.close(fd)
    with pytest.raises(OSError) as caught:
        linux.filesystem_type(-1)
    assert caught.value.errno == errno.EBADF


def test_virtual_file_systems_by_name() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    assert linux.VIRTUAL[linux.filesystem_type(fd)] == "proc"
    os.close(fd)


@pytest.mark.parametrize(
    "seconds, nanoseconds", [(1_600_000_000, 123_456_789), (-2, 500_000_000), (0, 0), (4_000_000_000, 1)]
)
def test_mtime_is_set_and_atime_kept(file: int, tmp_path: Path, seconds: int, nanoseconds: int) -> None:
    os.utime(file, ns=(1_234_567_890_123_456_789, 0))
    linux.set_mtime(file, seconds, nanoseconds)
    stat = os.fstat(file)
    assert (stat.st_atime_ns, stat.st_mtime_ns) == (1_234_567_890_123_456_789, seconds * 10**9 + nanoseconds)


def test_mtime_of_a_name_does_not_follow_symlinks(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    os.utime(target, ns=(5, 6))
    link = tmp_path / "link"
    link.symlink_to("target")
    os.utime(link, ns=(7_000_000_000, 8), follow_symlinks=False)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        linux.set_mtime_at(b"link", -2, 500_000_000, dir_fd=fd)
        with pytest.raises(FileNotFoundError):
            linux.set_mtime_at(b"missing", 0, 0, dir_fd=fd)
        with pytest.raises(ValueError, match="null"):
            linux.set_mtime_at(b"link\0x", 0, 0, dir_fd=fd)
    finally:
        os.close(fd)
    assert (link.lstat().st_atime_ns, link.lstat().st_mtime_ns) == (7_000_000_000, -1_500_000_000)
    assert target.stat().st_mtime_ns == 6
    linux.set_mtime_at(os.fsencode(link), 9, 9)
    assert link.lstat().st_mtime_ns == 9_000_000_009
    with pytest.raises(struct.error):
        linux.set_mtime_at(os.fsencode(link), 2**63, 0)


def test_syncfs(file: int) -> None:
    linux.syncfs(file)
    with pytest.raises(OSError):
        linux.syncfs(-1)


def test_open_noatime_falls_back_for_other_peoples_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"text")
    dir_fd = os.open(tmp_path, os.O_RDONLY)
    real, tried = os.open, []

    def refusing(name: bytes, flags: int, **more: int) -> int:
        tried.append(bool(flags & os.O_NOATIME))
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return real(name, flags, **more)

    monkeypatch.setattr(os, "open", refusing)
    fd = linux.open_noatime(b"file", 0, dir_fd)
    assert os.read(fd, 9) == b"text"
    assert tried == [True, False]
    assert not os.get_inheritable(fd)
    os.close(fd)
    os.close(dir_fd)


def test_open_noatime_leaves_atime_and_follows_no_symlink(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"text")
    os.utime(path, ns=(1, path.stat().st_mtime_ns))  # older than mtime: relatime would update it
    (tmp_path / "link").symlink_to("file")
    dir_fd = os.open(tmp_path, os.O_RDONLY)
    fd = linux.open_noatime(b"file", 0, dir_fd)
    os.read(fd, 4)
    os.close(fd)
    assert path.stat().st_atime_ns == 1
    with pytest.raises(OSError) as caught:
        linux.open_noatime(b"link", 0, dir_fd)
    assert caught.value.errno == errno.ELOOP
    os.close(dir_fd)


def test_device_of(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        (tmp_path / "link").symlink_to("/proc")
        assert linux.device_of(b"link", fd) == tmp_path.stat().st_dev
        assert linux.device_of(b"/proc", fd) == os.stat("/proc").st_dev
        with pytest.raises(FileNotFoundError):
            linux.device_of(b"missing", fd)
        with pytest.raises(ValueError, match="null"):
            linux.device_of(b"a\0b", fd)
    finally:
        os.close(fd)


@needs_root
def test_device_of_a_private_fuse_mount(tmp_path: Path) -> None:
    target = tmp_path / "private"
    target.mkdir()

    def check() -> bool:
        fuse = os.open("/dev/fuse", os.O_RDWR)
        mount(b"none", target, b"fuse", data=b"fd=%d,rootmode=40000,user_id=12345,group_id=12345" % fuse)
        with pytest.raises(PermissionError):
            target.lstat()
        fd = os.open(tmp_path, os.O_RDONLY)
        return linux.device_of(b"private", fd) != tmp_path.stat().st_dev

    assert with_mounts(check)


def test_renaming_within_a_directory(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        linux.rename_new(b"a", b"b", src_dir_fd=fd, dst_dir_fd=fd)
    linux.exchange_at(b"a", b"b", fd)
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("b", "a")
    linux.rename_new(b"a", b"c", src_dir_fd=fd, dst_dir_fd=fd)
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]
    os.close(fd)


def test_rename_new_without_the_kernel_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> int:
        ctypes.set_errno(errno.EINVAL)
        return -1

    fd = os.open(tmp_path, os.O_RDONLY)
    monkeypatch.setattr(linux._libc, "renameat2", unsupported)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        linux.rename_new(b"a", b"b", src_dir_fd=fd, dst_dir_fd=fd)
    linux.rename_new(b"a", b"c", src_dir_fd=fd, dst_dir_fd=fd)
    assert sorted(os.listdir(tmp_path)) == ["b", "c"]
    os.close(fd)


def test_probe_leaves_nothing(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    fd = os.open(tmp_path, os.O_RDONLY)
    found = linux.probe_new_file(fd)
    os.close(fd)
    assert found is None or found.st_uid == os.geteuid()
    assert os.listdir(tmp_path) == [] and tmp_path.stat().st_mtime_ns == before
