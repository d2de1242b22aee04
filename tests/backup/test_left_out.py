"""What a run had to leave out or could not vouch for is looked at again by the next one, whatever the times say."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.archive import Compare
from archiver.core.clock import Clock
from archiver.source.metadata import Features
from archiver.source.walk import Walk
from tests.random_trees import noise
from tests.source.sandbox import IS_ROOT
from tests.stores import ROOT, make_store, restored_differences, save


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "directory" / "below").mkdir(parents=True)
    for name in ("a", "file", "z", "below/file"):
        (root / "directory" / name).write_bytes(noise(len(name), 5000))
    os.symlink("a", root / "directory" / "link")
    return root


def fail_for(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, fails: Callable[..., bool]) -> None:
    """From now on calls of ``owner.name`` with certain arguments raise EACCES."""
    real = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        if fails(*arguments):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("many", [False, True], ids=["one directory", "split directory"])
@pytest.mark.parametrize("what", ["file", "link", "directory"])
def test_unreadable_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, many: bool) -> None:
    """The directory's own times do not change when an entry of it can be read again."""
    store = make_store(tmp_path / "store")
    for number in range(2500 * many):
        os.symlink("x", source / "directory" / f"{number:04}")
    save(store, source, mode="metadata")
    (source / "directory" / "new").touch()
    with monkeypatch.context() as patch:
        if what == "file":
            (source / "directory" / "file").write_bytes(noise(9, 6000))
            fail_for(patch, os, "open", lambda path, *_: path == b"file")
        elif what == "link":
            (source / "directory" / "link").unlink()
            (source / "directory" / "link").symlink_to("z")
            fail_for(patch, os, "readlink", lambda path, *_: path == b"link")
        else:
            fail_for(patch, Walk, "_open", lambda walk, directory: directory.name == b"below")
        first = save(store, source, mode="metadata")
        assert [problem.kind for problem in first.problems] == ["unreadable"]
    again = save(store, source, mode="metadata")
    assert again.problems == []
    assert restored_differences(store, again.snapshot, source, tmp_path / "out") == []
    assert save(store, source, mode="metadata").result.files.bytes_read == 0


@pytest.mark.parametrize("compare", ["auto", "metadata"])
def test_contents_that_could_not_be_read_to_their_end(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: Compare
) -> None:
    """Zeros stand in for them; the next run does not take these over."""
    store, file = make_store(tmp_path / "store"), source / "directory" / "file"
    with monkeypatch.context() as patch:
        status = file.stat()
        fail_for(patch, os, "preadv", lambda fd, *_: os.fstat(fd).st_ino == status.st_ino)
        first = save(store, source, mode="metadata", compare=compare)
        assert [problem.kind for problem in first.problems] == ["torn"]
    again = save(store, source, mode="metadata", compare=compare)
    assert restored_differences(store, again.snapshot, source, tmp_path / "out") == []
    assert save(store, source, mode="metadata", compare=compare).result.files.bytes_read == 0


@pytest.mark.parametrize("later", ["auto", "metadata"])
@pytest.mark.parametrize("before", ["auto", "metadata"])
def test_modified_in_the_moment_of_the_backup(source: Path, tmp_path: Path, before: Compare, later: Compare) -> None:
    """A second change within the granularity of modification times, which is all there is to go by."""
    file = source / "directory" / "file"

    class Now(Clock):
        def now_ns(self) -> int:
            return file.stat().st_mtime_ns + 10**9

    store = make_store(tmp_path / "store")
    save(store, source, mode="metadata", compare=before, clock=Now())
    status = file.stat()
    file.write_bytes(noise(77, 5000))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    saved = save(store, source, mode="metadata", compare=later)
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []
    assert save(store, source, mode="metadata", compare=later).result.files.bytes_read == 0


@pytest.mark.parametrize("magic", [0x73717368, 0xE0F5E1E2], ids=["squashfs", "erofs"])
def test_images_prove_nothing_by_their_numbers(magic: int) -> None:
    """In the next image another file may have the inode, and all times may be those of a reproducible build."""
    assert not Features.from_magic(magic, 1).stable


_SAVE = """
import sys
from pathlib import Path
from tests.stores import save
save(Path(sys.argv[1]), Path(sys.argv[2]), mode="metadata")
"""


@pytest.mark.parametrize("wrapper", [["unshare", "--map-root-user"], ["setpriv", "--bounding-set=-sys_admin"]])
def test_somebody_else_looks(source: Path, tmp_path: Path, wrapper: list[str]) -> None:
    """Root too may be told of other owners, or not of all attributes: what it saw is not what is there."""
    store, file = make_store(tmp_path / "store"), source / "directory" / "file"
    if not IS_ROOT or subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"{wrapper[0]} does not work here")
    os.chown(file, 1234, 1234)
    os.setxattr(file, "trusted.test", b"value")
    subprocess.run([*wrapper, sys.executable, "-c", _SAVE, store, source], cwd=ROOT, check=True)
    saved = save(store, source, mode="metadata")
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []
