"""Small files go a way of their own, which must give the same archive, and leave whatever is odd to the careful one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archiver.backup import holding
from archiver.backup.contents import Contents
from archiver.backup.holding import Holding
from archiver.backup.small_files import SmallFiles
from archiver.browse.snapshot import Snapshot
from archiver.store.store import Store
from tests.compare import NOT_KEPT, differences
from tests.random_trees import build_plain, noise
from tests.stores import Saved, bring_back, damage, make_store, restored_differences, save

pytestmark = pytest.mark.in_memory

DATA = noise(51, 5000)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("before", "file", "later"):
        (root / name).write_bytes(DATA)
    return root


def careful_names(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Names of the files that go the careful way, as they come."""
    names: list[bytes] = []
    real = Contents.add

    def add(self: Contents, directory: Any, entry: Any) -> Any:
        names.append(entry.name)
        return real(self, directory, entry)

    monkeypatch.setattr(Contents, "add", add)
    return names


def index_sums(store: Path, saved: Saved) -> dict[str, bytes]:
    with Store.open(store) as opened:
        snapshot = Snapshot(opened, saved.snapshot, None)
        return {file.filename: file.csum for file in snapshot.manifest.files if file.filename.endswith("didx")}


def test_the_archive_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of all lengths, sizes around the limits, links, empty files, other kinds of entries between them."""
    source = tmp_path / "source"
    build_plain(source, 5, files=600, directories=20)
    for number, size in enumerate([0, 1, 65536, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, 3_000_000]):
        (source / f"size-{number}").write_bytes(noise(number, size))
    for length in (1, 2, 100, 255):
        (source / ("n" * length)).write_bytes(DATA)
    os.symlink("size-1", source / "size-2-link")
    os.mkfifo(source / "size-3-fifo")
    os.link(source / "size-2", source / "zz-link")
    os.truncate(source / "size-1", 100_000)
    os.utime(source / "size-2", ns=(0, -1))
    careful = careful_names(monkeypatch)
    stores = [make_store(tmp_path / name) for name in ("quick", "careful")]
    quick = save(stores[0], source)
    assert sorted(careful) == [b"size-1", b"size-2", b"size-5", b"size-6"]
    monkeypatch.setattr(SmallFiles, "take", lambda *_: False)
    slow = save(stores[1], source)
    assert index_sums(stores[0], quick) == index_sums(stores[1], slow)
    assert quick.result.files == slow.result.files
    assert damage(stores[0]) == []
    assert restored_differences(stores[0], quick.snapshot, source, tmp_path / "out") == []
    monkeypatch.undo()
    for store in stores:  # what is known of the files is the same too
        again = save(store, source, mode="metadata").result.files
        assert (again.bytes_read, again.unchanged) == (0, quick.result.files.total - 1)


def before_call(monkeypatch: pytest.MonkeyPatch, name: str, tree: Path, change: Callable[[], object]) -> None:
    """Do ``change`` when ``os.NAME`` is called for ``file`` the first time; after ``preadv`` has read half of it."""
    real = getattr(os, name)
    done: list[bool] = []

    def is_meant(what: Any) -> bool:
        if isinstance(what, int):
            return os.readlink(f"/proc/self/fd/{what}") == str(tree / "file")
        return bool(what == b"file")

    def call(what: Any, *arguments: Any, **options: Any) -> Any:
        if done or not is_meant(what):
            return real(what, *arguments, **options)
        done.append(True)
        if name == "preadv":
            real(what, [arguments[0][0][:2500]], arguments[1])
            change()
            return 2500 + real(what, [arguments[0][0][2500:]], arguments[1] + 2500)
        change()
        return real(what, *arguments, **options)

    monkeypatch.setattr(os, name, call)


def _replace(tree: Path, data: bytes) -> None:
    (tree.parent / "fresh").write_bytes(data)
    os.replace(tree.parent / "fresh", tree / "file")


def _become(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(tree: Path) -> None:
        os.unlink(tree / "file")
        make(tree / "file")

    return change


CHANGES: dict[str, Callable[[Path], object]] = {
    "other bytes": lambda tree: (tree / "file").write_bytes(noise(52, 5000)),
    "shorter": lambda tree: os.truncate(tree / "file", 100),
    "empty": lambda tree: os.truncate(tree / "file", 0),
    "longer": lambda tree: os.truncate(tree / "file", 9000),
    "large": lambda tree: (tree / "file").write_bytes(noise(53, 1_000_000)),
    "mode": lambda tree: os.chmod(tree / "file", 0o4711),
    "time": lambda tree: os.utime(tree / "file", ns=(0, 10**18)),
    "link": lambda tree: os.link(tree / "file", tree.parent / "other name"),
    "attribute": lambda tree: os.setxattr(tree / "file", "user.new", b"value"),
    "replaced": lambda tree: _replace(tree, noise(54, 5000)),
}


@pytest.mark.parametrize("call", ["open", "preadv", "fstat"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_on_the_way(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, call: str
) -> None:
    """What was read is dropped and read again: no padding, and all there is of the file is of one moment."""
    store = make_store(tmp_path / "store")
    careful = careful_names(monkeypatch)
    before_call(monkeypatch, call, tree, lambda: CHANGES[change](tree))
    saved = save(store, tree)
    assert careful == [b"file"]
    assert saved.problems == []
    assert saved.result.archives[0].counters.padding_bytes == 0
    found = restored_differences(store, saved.snapshot, tree, tmp_path / "out")
    assert [line for line in found if not line.startswith("'.': mtime")] == []  # the directory was read before


def keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on it never pays to take the chunks of unchanged files over: all of them are read again."""
    monkeypatch.setattr(holding, "plan", lambda offsets, *_: np.zeros(len(offsets), np.bool_))


@pytest.mark.parametrize("call", ["open", "preadv", "fstat"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_while_it_is_read_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, call: str
) -> None:
    """Of a file that was as before when it was looked at, entry and row are known, and true of other contents."""
    store = make_store(tmp_path / "store")
    save(store, tree, mode="metadata")
    with monkeypatch.context() as patch:
        keep_nothing(patch)
        before_call(patch, call, tree, lambda: CHANGES[change](tree))
        saved = save(store, tree, mode="metadata")
    assert saved.problems == []
    assert (saved.result.files.total, saved.result.files.unchanged) == (3, 0)
    assert saved.result.archives[0].counters.padding_bytes == 0
    found = restored_differences(store, saved.snapshot, tree, tmp_path / "out")
    assert [line for line in found if not line.startswith("'.': mtime")] == []  # the directory was read before
    again = save(store, tree, mode="metadata")
    assert restored_differences(store, again.snapshot, tree, tmp_path / "again") == []


def test_all_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of all kinds between files that are read again, in directories that changed and that did not."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    build_plain(source, 6, files=400, directories=20)
    save(store, source, mode="metadata")
    (source / "new").write_bytes(DATA)
    with monkeypatch.context() as patch:
        keep_nothing(patch)
        second = save(store, source, mode="metadata")
    assert second.result.files.unchanged == 0
    assert restored_differences(store, second.snapshot, source, tmp_path / "out") == []
    third = save(store, source, mode="metadata")
    assert (third.result.files.bytes_read, third.result.files.unchanged) == (0, third.result.files.total)
    assert restored_differences(store, third.snapshot, source, tmp_path / "third") == []
    assert damage(store) == []


def test_what_is_held_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty directories have no entries, but take memory all the same."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    for number in range(300):
        (source / f"{number}").mkdir(parents=True)
    save(store, source, mode="metadata")
    held: list[int] = []
    real = Holding.flush

    def flush(self: Holding) -> None:
        held.append(len(self._queue))
        real(self)

    monkeypatch.setattr(holding, "_AT_MOST", 64)
    monkeypatch.setattr(Holding, "flush", flush)
    save(store, source, mode="metadata")
    assert sum(held) >= 300
    assert max(held) <= 64


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_become(lambda path: None), "vanished"),
        (_become(lambda path: path.symlink_to("before")), "unreadable"),
        (_become(os.mkfifo), "unreadable"),
        (_become(os.mkdir), "unreadable"),
    ],
    ids=["nothing", "symlink", "fifo", "directory"],
)
def test_no_file_any_more(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], kind: str
) -> None:
    store = make_store(tmp_path / "store")
    before_call(monkeypatch, "open", tree, lambda: change(tree))
    saved = save(store, tree)
    assert [(problem.path, problem.kind) for problem in saved.problems] == [(b"/file", kind)]
    bring_back(store, saved.snapshot, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["before", "later"]


def test_attributes_go_the_careful_way(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store")
    os.setxattr(tree / "file", "user.some", b"value")
    careful = careful_names(monkeypatch)
    saved = save(store, tree)
    assert careful == [b"file"]
    assert restored_differences(store, saved.snapshot, tree, tmp_path / "out") == []


def test_labels_of_security_modules_are_not_kept_and_cost_nothing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "store")
    monkeypatch.setattr(os, "listxattr", lambda fd: ["security.selinux"])
    careful = careful_names(monkeypatch)
    saved = save(store, tree)
    assert careful == []
    monkeypatch.undo()
    bring_back(store, saved.snapshot, tmp_path / "out")
    assert differences(tree, tmp_path / "out", ignore=NOT_KEPT) == []
