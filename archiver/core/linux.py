"""Thin typed calls into Linux that Python's ``os`` lacks: file attributes, project ids, file system types, mtimes.

ioctl (generic 64-bit numbers)   request      argument
-------------------------------  -----------  -----------------------------------------------------------------
FS_IOC_GETFLAGS / SETFLAGS       0x80086601   u32 chattr bits (the number says 8 bytes, the kernel uses 4)
                                 0x40086602
FS_IOC_FSGETXATTR / FSSETXATTR   0x801c581f   28 bytes: u32 xflags, extsize, nextents, projid, cowextsize, 8 pad
                                 0x401c5820
FAT_IOCTL_GET_ / SET_ATTRIBUTES  0x80047210   u32 DOS attribute bits
                                 0x40047211
BLKGETSIZE64                     0x80081272   u64 size of a block device in bytes

The tables at the end of the constants say which chattr and DOS bits an archive keeps (spec pxar.md 11.4).
Every function raises OSError; "not supported" is a value where a caller only reads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from fcntl import ioctl

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FAT_IOCTL_GET_ATTRIBUTES = 0x80047210
FAT_IOCTL_SET_ATTRIBUTES = 0x40047211
BLKGETSIZE64 = 0x80081272

# chattr bits of the kernel
FS_SYNC_FL = 0x8
FS_IMMUTABLE_FL = 0x10
FS_APPEND_FL = 0x20
FS_NODUMP_FL = 0x40
FS_NOATIME_FL = 0x80
FS_COMPR_FL = 0x4
FS_NOCOMP_FL = 0x400
FS_DIRSYNC_FL = 0x10000
FS_NOCOW_FL = 0x800000
FS_PROJINHERIT_FL = 0x20000000

# (bit in an archive, bit of the kernel)
CHATTR_BITS = (
    (0x1_0000, FS_APPEND_FL),
    (0x2_0000, FS_NOATIME_FL),
    (0x4_0000, FS_COMPR_FL),
    (0x8_0000, FS_NOCOW_FL),
    (0x10_0000, FS_NODUMP_FL),
    (0x20_0000, FS_DIRSYNC_FL),
    (0x40_0000, FS_IMMUTABLE_FL),
    (0x80_0000, FS_SYNC_FL),
    (0x100_0000, FS_NOCOMP_FL),
    (0x200_0000, FS_PROJINHERIT_FL),
)
FAT_BITS = (
    (0x2000, 2),  # hidden
    (0x4000, 4),  # system
    (0x8000, 32),  # archive
)
KEPT_CHATTR = sum(kernel for _, kernel in CHATTR_BITS)
KEPT_FAT = sum(kernel for _, kernel in FAT_BITS)

# statfs f_type
EXT4 = 0xEF53
XFS = 0x58465342
TMPFS = 0x01021994
BTRFS = 0x9123683E
BCACHEFS = 0xCA451A4E
F2FS = 0xF2F52010
ZFS = 0x2FC12FC1
FUSE = 0x65735546
MSDOS = 0x4D44

# Local file systems that keep inode numbers and change times of files, whatever happens to the machine. Not those that
# are made as images (squashfs, erofs): another one has the same numbers, and times as its maker likes.
STABLE = {
    EXT4,
    XFS,
    ZFS,
    BTRFS,
    BCACHEFS,
    F2FS,
    0x3153464A,  # jfs
    0x52654973,  # reiserfs
    0x3434,  # nilfs
    TMPFS,
    0x858458F6,  # ramfs
    0x794C7630,  # overlayfs
}

# Those that never write in place: also a page of a mapped file that had its room needs new one, and where there is none
# the process is killed (SIGBUS).
MOVING = {BTRFS, BCACHEFS, F2FS, ZFS}

_AS_THEY_ARE = {EXT4, XFS, TMPFS}  # those that need as much room for bytes as there are

# File systems that show the kernel's state, not files; never archived (spec pxar.md 11.6).
VIRTUAL = {
    0x42494E4D: "binfmt_misc",
    0x63677270: "cgroup2",
    0x0027E0EB: "cgroup",
    0x62656570: "configfs",
    0x64626720: "debugfs",
    0x00001CD1: "devpts",
    0xDE5E81E4: "efivarfs",
    0x65735543: "fusectl",
    0x958458F6: "hugetlbfs",
    0x19800202: "mqueue",
    0x6E667364: "nfsd",
    0x00009FA0: "proc",
    0x6165676C: "pstore",
    0x67596969: "rpc_pipefs",
    0x73636673: "securityfs",
    0xF97CFF8C: "selinuxfs",
    0x43415D53: "smackfs",
    0x62656572: "sysfs",
}

_UNSUPPORTED = {errno.ENOTTY, errno.ENOSYS, errno.EBADF, errno.EOPNOTSUPP, errno.EINVAL}
_PROJECT_AT = slice(12, 16)  # in struct fsxattr
_FSXATTR = struct.Struct("=12xI12x")
_U32 = struct.Struct("=I4x")  # FUSE copies the 8 bytes that the request number claims
_TIMES = struct.Struct("=qqqq")  # two struct timespec: atime, mtime
_UTIME_OMIT = (1 << 30) - 2
_SYNC_FILE_RANGE_WRITE = 2
_SYNC_FILE_RANGE_WAIT = 1 | 4  # before and after
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_M_MMAP_THRESHOLD = -3
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_NO_AUTOMOUNT = 0x800
_AT_STATX_DONT_SYNC = 0x4000
_STATX_DEVICE = struct.Struct("=136xII112x")  # struct statx: stx_dev_major, stx_dev_minor
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how mountinfo writes blanks and the like
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_char_p]
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.futimens.argtypes = [ctypes.c_int, ctypes.c_char_p]
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]


def _call(function: Callable[..., int], *arguments: object) -> None:
    """Raises OSError; a call that a signal interrupted is made again, as Python does with those of its own."""
    while function(*arguments) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def return_freed_memory() -> None:
    """Have large blocks go back to the system when they are freed, always. Otherwise glibc keeps more and more of them
    for each thread as soon as some were freed."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def open_noatime(name: bytes, flags: int, dir_fd: int) -> int:
    """Open ``name`` in a directory for reading: no symlink is followed; the access time stays where we may leave it.

    ``flags`` are added to the usual ones. The kernel says EPERM to O_NOATIME on somebody else's file.
    """
    try:
        return os.open(name, _LOOK | os.O_NOATIME | flags, dir_fd=dir_fd)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
    return os.open(name, _LOOK | flags, dir_fd=dir_fd)


def get_flags(fd: int) -> int | None:
    """The chattr bits (FS_*_FL); None where the file system has none."""
    value = bytearray(_U32.size)  # with immutable bytes each call would make an exception first, and forget it
    try:
        ioctl(fd, FS_IOC_GETFLAGS, value)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    flags: int = _U32.unpack(value)[0]
    return flags


def set_flags(fd: int, flags: int) -> None:
    ioctl(fd, FS_IOC_SETFLAGS, _U32.pack(flags))


def get_fat_attributes(fd: int) -> int | None:
    """The DOS attribute bits; None where the file system has none."""
    value = bytearray(_U32.size)
    try:
        ioctl(fd, FAT_IOCTL_GET_ATTRIBUTES, value)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    attributes: int = _U32.unpack(value)[0]
    return attributes


def set_fat_attributes(fd: int, attributes: int) -> None:
    ioctl(fd, FAT_IOCTL_SET_ATTRIBUTES, _U32.pack(attributes))


def get_project_id(fd: int) -> int:
    """The quota project id; 0 when there is none or the file system has no such thing."""
    attributes = bytearray(_FSXATTR.size)
    try:
        ioctl(fd, FS_IOC_FSGETXATTR, attributes)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return 0
        raise
    project: int = _FSXATTR.unpack(attributes)[0]
    return project


def set_project_id(fd: int, project_id: int) -> None:
    if project_id >= 1 << 32:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    attributes = bytearray(28)
    ioctl(fd, FS_IOC_FSGETXATTR, attributes)
    attributes[_PROJECT_AT] = project_id.to_bytes(4, sys.byteorder)
    ioctl(fd, FS_IOC_FSSETXATTR, attributes)


def device_size(fd: int) -> int:
    """The size of an open block device in bytes; its file position may be another one then."""
    size = bytearray(8)
    try:
        ioctl(fd, BLKGETSIZE64, size)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return os.lseek(fd, 0, os.SEEK_END)
    return int.from_bytes(size, sys.byteorder)


def mount_points(device: int) -> list[str]:
    """Where the file system on the block device with this number (st_rdev) is mounted, as this process sees it."""
    number = f"{os.major(device)}:{os.minor(device)}"
    return [place for of_device, place in _mounts() if of_device == number]


def all_mount_points() -> list[str]:
    """Where anything is mounted, as this process sees it."""
    return [place for _, place in _mounts()]


def _mounts() -> Iterator[tuple[str, str]]:
    """Device number and mount point of each; none without /proc, where nothing is known."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                fields = line.split()
                if len(fields) > 4:
                    place = _OCTAL.sub(lambda code: bytes([int(code[1], 8)]), fields[4])
                    yield fields[2].decode(), os.fsdecode(place)
    except OSError:
        return


def archive_flags(chattr: int, fat: int = 0) -> int:
    """Kernel bits as the attribute bits of an archive entry; bits that are not kept are dropped."""
    if not chattr & KEPT_CHATTR and not fat & KEPT_FAT:
        return 0
    flags = sum(bit for bit, kernel in CHATTR_BITS if chattr & kernel)
    return flags + sum(bit for bit, kernel in FAT_BITS if fat & kernel)


def chattr_flags(flags: int) -> int:
    """The chattr bits that an archive entry's attribute bits ask for."""
    return sum(kernel for bit, kernel in CHATTR_BITS if flags & bit)


def fat_attributes(flags: int) -> int:
    """The DOS attribute bits that an archive entry's attribute bits ask for."""
    return sum(kernel for bit, kernel in FAT_BITS if flags & bit)


def filesystem_type(fd: int) -> int:
    """statfs ``f_type`` (EXT4, ...) of the file system an open file lies on, as 32 bits without sign."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs is 120 bytes; f_type comes first, as a long
    _call(_libc.fstatfs, fd, buffer)
    return int.from_bytes(buffer.raw[:8], sys.byteorder) & 0xFFFFFFFF


def stores_as_it_is(path: str) -> bool:
    """Whether the file system of a directory certainly stores bytes as they are, without compression."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return filesystem_type(fd) in _AS_THEY_ARE
    finally:
        os.close(fd)


def device_of(name: bytes, dir_fd: int) -> int:
    """The st_dev of ``name``, even where a FUSE mount refuses every other question about it.

    Nothing is mounted, followed or fetched from a server. OSError ENOSYS where the C library has no statx.
    """
    if b"\0" in name:
        raise ValueError("embedded null byte")
    if not hasattr(_libc, "statx"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = ctypes.create_string_buffer(_STATX_DEVICE.size)
    _call(_libc.statx, dir_fd, name, _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC, 0, buffer)
    major, minor = _STATX_DEVICE.unpack(buffer)
    return os.makedev(major, minor)


def syncfs(fd: int) -> None:
    """Write everything of the file system that ``fd`` lies on; write-back errors since its opening are raised."""
    _call(_libc.syncfs, fd)


def exchange_at(first: bytes, second: bytes, dir_fd: int) -> None:
    """``exchange`` for two names in an open directory."""
    _call(_libc.renameat2, dir_fd, first, dir_fd, second, _RENAME_EXCHANGE)


def rename_new(source: bytes, target: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
    """rename; FileExistsError when ``target`` exists, whatever it is. Where the file system cannot tell at the same
    instant it is looked for before."""
    try:
        _call(_libc.renameat2, src_dir_fd, source, dst_dir_fd, target, _RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        try:
            os.stat(target, dir_fd=dst_dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None


def exchange(first: str, second: str) -> None:
    """Each of two names leads to what the other did, at one instant. Not every file system can do that: EINVAL."""
    _call(_libc.renameat2, _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)


def start_write_back(fd: int, offset: int = 0, length: int = 0) -> None:
    """Let the kernel begin to write what is in memory of an open file, or of ``length`` bytes of it at ``offset``,
    without waiting for it; only a hint.

    /usr/share: the durability barrier at the end takes 0.02 s instead of 0.11 s.
    """
    _libc.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def wait_for_write_back(fd: int, offset: int, length: int) -> None:
    """Until these bytes of an open file are written; what leads to them on the disk may not be."""
    _call(_libc.sync_file_range, fd, offset, length, _SYNC_FILE_RANGE_WAIT | _SYNC_FILE_RANGE_WRITE)


def set_mtime(fd: int, seconds: int, nanoseconds: int) -> None:
    """Set the modification time of an open file; its access time stays."""
    _call(_libc.futimens, fd, _TIMES.pack(0, _UTIME_OMIT, seconds, nanoseconds))


def chmod_at(name: bytes, mode: int, *, dir_fd: int) -> None:
    """Set the permissions of a name that is neither opened nor followed; OSError for a symlink."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode)  # fchmod refuses such descriptors
    finally:
        os.close(fd)


def make_node(name: bytes, mode: int, major: int, minor: int, *, dir_fd: int) -> None:
    """mknod; OSError too for numbers that no device of Linux has."""
    if major >= 1 << 12 or minor >= 1 << 20:
        raise OSError(errno.EINVAL, f"no device has the number {major}:{minor}")
    os.mknod(name, mode, os.makedev(major, minor), dir_fd=dir_fd)


def probe_new_file(dir_fd: int) -> os.stat_result | None:
    """What a new file in an open directory looks like when its modification time is set to 1.000000001 s: whether the
    file system keeps that (ext4 with small inodes does not), and whose the file is. None where that cannot be tried
    without leaving a trace."""
    try:
        fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        set_mtime(fd, 1, 1)
        return os.fstat(fd)
    finally:
        os.close(fd)


def set_mtime_at(name: bytes, seconds: int, nanoseconds: int, *, dir_fd: int = _AT_FDCWD) -> None:
    """The same for a name in a directory; a symlink's own time, not its target's."""
    if b"\0" in name:
        raise ValueError("embedded null byte")
    times = _TIMES.pack(0, _UTIME_OMIT, seconds, nanoseconds)
    _call(_libc.utimensat, dir_fd, name, times, _AT_SYMLINK_NOFOLLOW)


def umask() -> int:
    """Of this process, without changing it for a moment, as os.umask would for all threads; -1 where that is not told:
    then no permissions of a new file are known."""
    try:
        with open("/proc/self/status", "rb") as file:
            return next(int(line.split()[1], 8) for line in file if line.startswith(b"Umask:"))
    except (OSError, ValueError, StopIteration):
        return -1


def process_start() -> int:
    """When this process began, in clock ticks since the machine did; 0 where that is not told."""
    try:
        with open("/proc/self/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
