"""Files that change, vanish or cannot be read while they are backed up: retried, then torn and named; never a crash."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.backup import contents as contents_module
from archiver.backup import run as run_module
from archiver.backup.run import Mode
from archiver.browse.snapshot import Snapshot
from archiver.source import content
from archiver.store.layout import Layout
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig
from tests.compare import NOT_KEPT, differences
from tests.random_trees import noise
from tests.restore.planted import read_all
from tests.source.sandbox import IS_ROOT, NOBODY, as_ordinary_user, world_readable_directory
from tests.stores import KEY, Saved, bring_back, make_store, save

MODES: list[Mode] = ["data", "legacy"]
DATA = noise(31, 300_000)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("before", "file", "later"):
        (root / name).write_bytes(DATA)
    return root


def disturb(monkeypatch: pytest.MonkeyPatch, size: int, change: Callable[[int], None]) -> list[int]:
    """Call ``change(n)`` after the first read of the n-th attempt (1...) at the file of ``size`` bytes; the list of
    attempts is returned."""
    attempts: list[int] = []
    real = content.read_into

    def read_into(fd: int, view: memoryview, offset: int) -> int:
        if offset == 0 and os.fstat(fd).st_size == size and os.readlink(f"/proc/self/fd/{fd}").endswith("/file"):
            got = real(fd, view[: size // 2], offset)
            attempts.append(len(attempts) + 1)
            change(attempts[-1])
            return got
        return real(fd, view, offset)

    monkeypatch.setattr(contents_module, "read_into", read_into)
    return attempts


def checked(store: Path, saved: Saved, out: Path, crypt: CryptConfig | None = None) -> dict[str, str]:
    """Errors of the run by path, after the snapshot was read in every way."""
    with Store.open(store) as opened:
        read_all_with(opened, saved, crypt)
        log = Path(Layout(str(store)).snapshot(saved.snapshot)) / "client.log.blob"
        if saved.result.errors:
            text = bytes(blob.decode(log.read_bytes(), crypt, encrypted=crypt is not None)).decode()
            assert [line.split(": ")[1] for line in text.splitlines()] == [
                os.fsdecode(error.path) for error in saved.result.errors
            ]
        else:
            assert not log.exists()
    assert bring_back(store, saved.snapshot, out, crypt=crypt).problems == []
    return {os.fsdecode(error.path): error.kind for error in saved.result.errors}


def read_all_with(store: Store, saved: Saved, crypt: CryptConfig | None) -> None:
    if crypt is None:
        assert read_all(store, saved.snapshot) > 0
    else:
        Snapshot(store, saved.snapshot, crypt)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_a_file_that_never_holds_still(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, crypt: CryptConfig | None
) -> None:
    """Other bytes of the same size at every attempt."""
    store = make_store(tmp_path / "store")
    attempts = disturb(monkeypatch, len(DATA), lambda number: os.utime(tree / "file", ns=(0, number * 1_000_000_000)))
    saved = save(store, tree, mode=mode, crypt=crypt)
    assert len(attempts) == (3 if mode == "data" else 1)
    assert checked(store, saved, tmp_path / "out", crypt) == {"/file": "torn"}
    assert saved.result.files.torn == 1 and saved.result.files.total == 3
    padding = saved.result.archives[0].counters.padding_bytes
    assert padding == (2 * (16 + len(DATA)) if mode == "data" else 0)
    for name in ("before", "later"):
        assert (tmp_path / "out" / name).read_bytes() == DATA


def test_a_file_that_holds_still_the_second_time(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store")
    other = noise(32, len(DATA))

    def change(number: int) -> None:
        if number == 1:
            (tree / "file").write_bytes(other)

    assert disturb(monkeypatch, len(DATA), change) == []
    saved = save(store, tree)
    assert checked(store, saved, tmp_path / "out") == {}
    assert (tmp_path / "out/file").read_bytes() == other
    assert saved.result.archives[0].counters.padding_bytes == 16 + len(DATA)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [0, 1000, len(DATA) - 1, len(DATA) + 1, 3 * len(DATA)])
def test_other_sizes(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, size: int) -> None:
    """Shrinks or grows while it is read. With one stream it keeps the size it was declared with, filled with zeros."""
    store = make_store(tmp_path / "store")
    disturb(monkeypatch, len(DATA), lambda number: os.truncate(tree / "file", size))
    saved = save(store, tree, mode=mode)
    errors = checked(store, saved, tmp_path / "out")
    got = (tmp_path / "out/file").read_bytes()
    if mode == "data":
        assert errors == {}
        assert got == (DATA + bytes(2 * len(DATA)))[:size]
    else:
        assert errors == {"/file": "torn"}
        assert got == (DATA[: max(size, len(DATA) // 2)] + bytes(len(DATA)))[: len(DATA)]
    assert (tmp_path / "out/later").read_bytes() == DATA


@pytest.mark.parametrize("mode", MODES)
def test_removed_or_replaced_while_read(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """The old contents are still there to be read, but in two streams the name is looked at again."""
    store = make_store(tmp_path / "store")

    def change(number: int) -> None:
        os.unlink(tree / "file")
        os.mkfifo(tree / "file")

    disturb(monkeypatch, len(DATA), change)
    saved = save(store, tree, mode=mode)
    errors = checked(store, saved, tmp_path / "out")
    assert errors == ({"/file": "unreadable"} if mode == "data" else {"/file": "torn"})
    assert (tmp_path / "out/later").read_bytes() == DATA


def test_a_name_of_several_that_is_replaced(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``file`` gets another inode while it is opened; its former other names are no links to the new one."""
    store = make_store(tmp_path / "store")
    for name in ("link-1", "link-2"):
        os.link(tree / "file", tree / name)
    real, fresh = content.open_file, noise(33, 1000)

    def open_file(directory: object, entry: object) -> object:
        if entry.name == b"file" and entry.stat.st_size == len(DATA):  # type: ignore[attr-defined]
            (tmp_path / "fresh").write_bytes(fresh)
            os.replace(tmp_path / "fresh", tree / "file")
        return real(directory, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(contents_module, "open_file", open_file)
    saved = save(store, tree)
    assert checked(store, saved, tmp_path / "out") == {}
    assert (tmp_path / "out/file").read_bytes() == fresh
    assert differences(tree, tmp_path / "out", ignore=NOT_KEPT | {"mtime"}) == []


@pytest.mark.parametrize("other", [b"as if the inode had been given to another file", noise(34, len(DATA))])
def test_an_inode_that_is_used_again(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: bytes) -> None:
    """A file that is gone and one that got its inode are two files, even of the same size and modification time."""
    store = make_store(tmp_path / "store")
    os.link(tree / "before", tree / "before-too")
    real = content.unchanged

    def unchanged(before: os.stat_result, fd: int) -> bool:
        result = real(before, fd)
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/before"):
            (tree / "before").write_bytes(other)
            os.utime(tree / "before", ns=(before.st_atime_ns, before.st_mtime_ns))
        return result

    monkeypatch.setattr(contents_module, "unchanged", unchanged)
    saved = save(store, tree)
    checked(store, saved, tmp_path / "out")
    assert (tmp_path / "out/before").read_bytes() == DATA
    assert (tmp_path / "out/before-too").read_bytes() == (tree / "before").read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_vanished(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    """What goes between listing and opening is counted and is no error."""
    store = make_store(tmp_path / "store")
    real = content.open_file

    def open_file(directory: object, entry: object) -> object:
        if entry.name == b"file":  # type: ignore[attr-defined]
            os.unlink(tree / "file")
        return real(directory, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(contents_module, "open_file", open_file)
    saved = save(store, tree, mode=mode)
    assert checked(store, saved, tmp_path / "out") == {}
    assert (saved.result.files.vanished, saved.result.files.total) == (1, 2)
    assert sorted(os.listdir(tmp_path / "out")) == ["before", "later"]


@pytest.mark.skipif(not IS_ROOT, reason="needs root to become another user")
@pytest.mark.parametrize("mode", MODES)
def test_unreadable(mode: Mode) -> None:
    """Files and directories without the right to read are named, and missing; the rest is there."""
    with world_readable_directory() as place:
        os.chown(place, NOBODY, NOBODY)

        def work() -> tuple[dict[str, str], list[str]]:
            tree = place / "tree"
            (tree / "closed").mkdir(parents=True)
            (tree / "closed" / "inside").write_bytes(b"x")
            for name in ("open", "secret"):
                (tree / name).write_bytes(DATA)
            (tree / "secret").chmod(0)
            (tree / "closed").chmod(0)
            store = make_store(place / "store")
            saved = save(store, tree, mode=mode)
            (tree / "closed").chmod(0o700)
            return checked(store, saved, place / "out"), sorted(os.listdir(place / "out"))

        errors, found = as_ordinary_user(work)
    assert errors == {"/secret": "unreadable", "/closed": "unreadable"}
    assert found == ["open"]


def test_links_to_a_file_below_a_long_path(tmp_path: Path) -> None:
    """A path of more than 4096 bytes cannot be the target of a link; its other names have the contents themselves."""
    root = tmp_path / "tree"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    top = os.dup(fd)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.write(file, DATA)
    os.close(file)
    for name in ("link-1", "link-2"):
        os.link("file", name, src_dir_fd=fd, dst_dir_fd=top)
    os.close(fd)
    os.close(top)
    store = make_store(tmp_path / "store")
    saved = save(store, root)
    assert checked(store, saved, tmp_path / "out") == {}
    assert differences(root, tmp_path / "out", ignore={"links"}) == []
    assert (tmp_path / "out/link-1").samefile(tmp_path / "out/link-2")


def test_the_store_is_never_in_its_own_backup(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(DATA)
    store = make_store(tree / "store")
    for _ in range(2):
        saved = save(store, tree)
        assert [problem.path for problem in saved.problems if problem.kind == "skipped"] == [b"/store"]
        assert saved.result.archives[0].counters.size < 2 * len(DATA)
    bring_back(store, saved.snapshot, tmp_path / "out")
    assert os.listdir(tmp_path / "out/store") == []


@pytest.mark.parametrize("room", [0, 650])
def test_very_many_errors_are_counted_not_kept(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    def fails(fd: int, view: memoryview, offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(contents_module, "read_into", fails)
    monkeypatch.setattr(run_module, "_ERRORS_KEPT", room)
    store = make_store(tmp_path / "store")
    saved = save(store, tree)
    kept = 2 if room else 1
    assert (saved.result.files.torn, len(saved.result.errors), len(saved.problems)) == (3, kept, 3)
    log = Path(Layout(str(store)).snapshot(saved.snapshot)) / "client.log.blob"
    lines = bytes(blob.decode(log.read_bytes())).decode().splitlines()
    assert len(lines) == kept + 1 and lines[-1] == f"... and {3 - kept} more"
