from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from archiver.core import linux
from archiver.source.metadata import Features, collect, plain
from formats.pxar.metadata import NO_ACL, DefaultAcl, Metadata
from tests.source.sandbox import IS_ROOT, as_ordinary_user, mount, with_mounts, world_readable_directory

needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root may do this")

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 0x10, 0x20
NO_ID = 2**32 - 1


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def collected(path: Path, **options: Any) -> tuple[Metadata, list[tuple[str, str]]]:
    problems: list[tuple[str, str]] = []
    fd = os.open(path, os.O_RDONLY)
    try:
        stat = os.fstat(fd)
        features = options.pop("features", None) or Features.of(fd, stat.st_dev)
        found = collect(
            fd,
            stat,
            features,
            skip_e2big=options.pop("skip_e2big", False),
            problem=lambda kind, reason: problems.append((kind, reason)),
        )
    finally:
        os.close(fd)
    return found, problems


def complete(path: Path, **options: Any) -> Metadata:
    found, problems = collected(path, **options)
    assert problems == []
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"contents")
    path.chmod(0o640)
    return path


ALL = {"xattrs": True, "acl": True, "fcaps": True}
NONE = {"xattrs": False, "acl": False, "fcaps": False}


@pytest.mark.parametrize(
    "magic, expected",
    [
        (0xEF53, {**ALL, "quota": True, "fat": False, "stable": True}),
        (0x58465342, {**ALL, "quota": True, "fat": False, "stable": True}),
        (0x2FC12FC1, {**ALL, "quota": True, "fat": False, "stable": True}),
        (0x9123683E, {**ALL, "quota": False, "fat": False, "stable": True}),
        (0x01021994, {**ALL, "quota": False, "fat": False, "stable": True}),  # tmpfs: more than the original
        (0x65735546, {**NONE, "xattrs": True, "quota": False, "fat": True}),
        (0x4D44, {**NONE, "quota": False, "fat": True}),
        (0x6969, {**ALL, "quota": False, "fat": False}),
    ],
)
def test_features_of_file_systems(magic: int, expected: dict[str, bool]) -> None:
    features = Features.from_magic(magic, 77)._asdict()
    assert features == {"stable": False, **expected, "device": 77, "identity": b""}


def test_an_ordinary_file(file: Path) -> None:
    os.utime(file, ns=(0, 1_600_000_000_123_456_789))
    found = complete(file)
    assert found.stat == (0o100640, 0, os.getuid(), os.getgid(), 1_600_000_000, 123_456_789)
    assert found == Metadata(found.stat)


def test_times_before_1970_are_floored(file: Path) -> None:
    os.utime(file, ns=(0, -1_500_000_000))
    stat = complete(file).stat
    assert (stat.mtime_secs, stat.mtime_nanos) == (-2, 500_000_000)


def test_xattrs_keep_the_kernels_order(file: Path) -> None:
    for name, value in (("user.zz", b"1"), ("user.a", b""), ("user.mm", b"\0\xff" * 20), ("user.b.c", b"x")):
        os.setxattr(file, name, value)
    found = complete(file)
    assert [name.decode() for name, _ in found.xattrs] == os.listxattr(file)
    assert dict(found.xattrs) == {b"user.zz": b"1", b"user.a": b"", b"user.mm": b"\0\xff" * 20, b"user.b.c": b"x"}
    assert found.acl == NO_ACL
    assert found.fcaps is None


def test_xattr_names_are_bytes(file: Path) -> None:
    os.setxattr(file, b"user.caf\xe9", b"latin")
    assert complete(file).xattrs == ((b"user.caf\xe9", b"latin"),)


@needs_root
def test_which_xattrs_are_stored(file: Path) -> None:
    os.setxattr(file, "trusted.own", b"t")
    os.setxattr(file, "security.NTACL", b"samba")
    os.setxattr(file, "security.other", b"no")
    os.setxattr(file, "user.own", b"u")
    assert dict(complete(file).xattrs) == {b"trusted.own": b"t", b"security.NTACL": b"samba", b"user.own": b"u"}


@needs_root
def test_file_capabilities(file: Path) -> None:
    value = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # version 2, effective; cap_net_bind_service
    os.setxattr(file, "security.capability", value)
    found = complete(file)
    assert found.fcaps == value
    assert found.xattrs == ()
    fd = os.open(file, os.O_RDONLY)
    without = Features.of(fd, 0)._replace(fcaps=False)
    os.close(fd)
    assert complete(file, features=without).fcaps is None


def test_access_acl(file: Path) -> None:
    value = acl(
        (USER_OBJ, 6, NO_ID), (USER, 4, 1001), (USER, 7, 70000), (GROUP_OBJ, 5, NO_ID), (GROUP, 1, 9), (MASK, 7, NO_ID),
        (OTHER, 0, NO_ID),
    )  # fmt: skip
    os.setxattr(file, ACCESS, value)
    found = complete(file)
    assert found.stat.mode == 0o100670
    assert found.acl.users == ((1001, 4), (70000, 7))
    assert found.acl.groups == ((9, 1),)
    assert found.acl.group_obj == 5
    assert found.acl.default is None
    assert found.xattrs == ()


def test_default_acl_of_a_directory(tmp_path: Path) -> None:
    os.setxattr(
        tmp_path,
        DEFAULT,
        acl((USER_OBJ, 7, NO_ID), (USER, 5, 1001), (GROUP_OBJ, 5, NO_ID), (MASK, 5, NO_ID), (OTHER, 0, NO_ID)),
    )
    found = complete(tmp_path)
    assert found.acl.default == DefaultAcl(user_obj=7, group_obj=5, other=0, mask=5)
    assert found.acl.default_users == ((1001, 5),)
    assert found.acl.users == ()
    assert found.acl.group_obj is None
    features = Features(xattrs=True, acl=False, fcaps=True, quota=False, fat=False, device=0)
    assert complete(tmp_path, features=features).acl == NO_ACL


def test_chattr_flags(file: Path) -> None:
    fd = os.open(file, os.O_RDONLY)
    linux.set_flags(fd, (linux.get_flags(fd) or 0) | linux.FS_NODUMP_FL | linux.FS_NOATIME_FL)
    os.close(fd)
    assert complete(file).stat.flags == 0x120000


def test_project_id_and_dos_attributes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "get_project_id", lambda fd: 4711)
    monkeypatch.setattr(linux, "get_fat_attributes", lambda fd: 6)
    features = Features(xattrs=False, acl=False, fcaps=False, quota=True, fat=True, device=0)
    found = complete(file, features=features)
    assert found.quota_project_id == 4711
    assert found.stat.flags == 0x6000
    os.setxattr(file, "user.a", b"1")
    assert complete(file, features=features._replace(xattrs=True)).quota_project_id == 4711
    monkeypatch.setattr(linux, "get_project_id", lambda fd: 0)
    assert complete(file, features=features).quota_project_id is None


def test_tmpfs_gives_what_it_has(tmp_path: Path) -> None:
    def check() -> Metadata:
        mount(b"none", tmp_path, b"tmpfs", data=b"mode=755")
        path = tmp_path / "file"
        path.write_bytes(b"")
        os.setxattr(
            path,
            ACCESS,
            acl((USER_OBJ, 6, NO_ID), (USER, 4, 0), (GROUP_OBJ, 4, NO_ID), (MASK, 4, NO_ID), (OTHER, 0, NO_ID)),
        )
        if IS_ROOT:
            os.setxattr(path, "trusted.a", b"1")
        return complete(path)

    found = with_mounts(check)
    assert found.acl.users == ((0, 4),)
    assert found.xattrs == (((b"trusted.a", b"1"),) if IS_ROOT else ())


def failing_on(monkeypatch: pytest.MonkeyPatch, call: str, number: int, only: str | None = None) -> None:
    real = getattr(os, call)

    def fail(fd: int, *name: str) -> Any:
        if only is None or name == (only,):
            raise OSError(number, os.strerror(number))
        return real(fd, *name)

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize("skip, kind", [(False, "unreadable"), (True, "skipped")])
@pytest.mark.parametrize("call", ["listxattr", "getxattr"])
def test_attributes_too_large_for_the_kernel(
    file: Path, monkeypatch: pytest.MonkeyPatch, skip: bool, kind: str, call: str
) -> None:
    os.setxattr(file, "user.a", b"1")
    os.setxattr(file, "user.large", b"2")
    failing_on(monkeypatch, call, errno.E2BIG, "user.large" if call == "getxattr" else None)
    found, problems = collected(file, skip_e2big=skip)
    assert found.xattrs == (((b"user.a", b"1"),) if call == "getxattr" else ())
    assert found.stat.mode == 0o100640
    ((seen, reason),) = problems
    assert seen == kind
    assert "too large" in reason
    assert ("--skip-e2big-xattr" in reason) is not skip


@pytest.mark.parametrize("number", [errno.ENODATA, errno.EOPNOTSUPP])
def test_an_attribute_removed_meanwhile_is_no_problem(file: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    os.setxattr(file, "user.a", b"1")
    os.setxattr(file, "user.b", b"2")
    failing_on(monkeypatch, "getxattr", number, "user.a")
    assert complete(file).xattrs == ((b"user.b", b"2"),)


def test_a_file_system_without_xattrs_is_no_problem(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_on(monkeypatch, "listxattr", errno.EOPNOTSUPP)
    assert complete(file).xattrs == ()


@pytest.mark.parametrize("call", ["listxattr", "getxattr"])
def test_an_unreadable_attribute_does_not_cost_the_file(file: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    os.setxattr(file, "user.a", b"1")
    failing_on(monkeypatch, call, errno.EIO)
    found, problems = collected(file)
    assert found == Metadata(found.stat)
    ((kind, reason),) = problems
    assert kind == "unreadable"
    assert "input/output error" in reason


def test_unreadable_flags_do_not_cost_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    os.setxattr(file, "user.a", b"1")
    monkeypatch.setattr(linux, "get_flags", fail)
    found, problems = collected(file)
    assert found.stat.flags == 0
    assert found.xattrs == ((b"user.a", b"1"),)
    assert problems == [("unreadable", "attribute flags not stored: input/output error")]


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_lack_of_resources_ends_the_run(file: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    failing_on(monkeypatch, "listxattr", number)
    with pytest.raises(OSError) as caught:
        collected(file)
    assert caught.value.errno == number


def test_an_attribute_larger_than_the_format(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "user." + "n" * 250
    values = {name: bytes(65536), "user.fits": bytes(65536)}
    monkeypatch.setattr(os, "listxattr", lambda fd: list(values))
    monkeypatch.setattr(os, "getxattr", lambda fd, name: values[name])
    found, problems = collected(file)
    assert found.xattrs == ((b"user.fits", bytes(65536)),)
    ((kind, reason),) = problems
    assert kind == "unreadable"
    assert name in reason


def test_a_damaged_acl_does_not_cost_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listxattr", lambda fd: [ACCESS, "user.a"])
    monkeypatch.setattr(os, "getxattr", lambda fd, name: b"\x09garbage")
    found, problems = collected(file)
    assert found.acl == NO_ACL
    assert found.xattrs == ((b"user.a", b"\x09garbage"),)
    ((kind, reason),) = problems
    assert kind == "unreadable"
    assert "access control list" in reason


def test_plain_metadata(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    os.utime(link, ns=(0, -1), follow_symlinks=False)
    found = plain(link.lstat())
    assert found == Metadata(found.stat)
    assert found.stat == (0o120777, 0, os.getuid(), os.getgid(), -1, 999_999_999)


def test_an_ordinary_user_collects_what_it_may_see() -> None:
    with world_readable_directory() as directory:
        path = directory / "file"
        path.write_bytes(b"")
        path.chmod(0o644)
        os.setxattr(path, "user.a", b"1")
        if IS_ROOT:
            os.setxattr(path, "trusted.b", b"2")
        assert as_ordinary_user(lambda: complete(path).xattrs) == ((b"user.a", b"1"),)
