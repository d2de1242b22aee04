"""Nothing that the program does to a store passes the recorder by."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from archiver.core.disk import Buffers, Disk
from archiver.errors import ArchiverError
from formats.errors import FormatError
from tests.crash.operations import OPERATIONS
from tests.crash.recording import DATABASE, History, Recorder
from tests.crash.states import Mode, States
from tests.crash.test_power_cut import look_at, place, record
from tests.stores import ROOT

__all__ = ["place"]


def on_disk(root: Path) -> tuple[set[str], dict[str, bytes]]:
    """Directories and files below ``root`` without the database."""
    directories, files = set(), {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if f"/{name}/".startswith(DATABASE + "/"):
            continue
        if path.is_dir():
            directories.add(name)
        else:
            files[name] = path.read_bytes()
    return directories, files


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_operations_make_the_tree(name: str, place: Path) -> None:
    """What they make of the tree before is the tree after, byte for byte, and so is the last commit the database."""
    recorder, scene = record(OPERATIONS[name], place / "scene")
    history = recorder.history
    assert history.ops
    state = States(history, random.Random(1)).at(len(history.ops), "kill")
    directories, files = on_disk(scene.root)
    assert set(state.directories) == directories
    assert {path: contents.data for path, contents in state.files.items()} == files
    data = scene.root / DATABASE[1:] / "data.mdb"
    commits = [history.database, *(op.data for op in history.ops if op.kind == "commit")]
    assert commits[-1] == (data.read_bytes() if data.exists() else None)
    for contents in state.files.values():
        assert not contents.inode or (history.attic / str(contents.inode)).read_bytes() == contents.data


# -- strace ------------------------------------------------------------------------------------------------------------

_CALLS = {
    "write": "write writev pwrite64 pwritev pwritev2",
    "truncate": "truncate ftruncate",
    "allocate": "fallocate",
    "rename": "rename renameat renameat2",
    "unlink": "unlink",
    "unlinkat": "unlinkat",
    "mkdir": "mkdir mkdirat",
    "rmdir": "rmdir",
    "link": "link linkat",
    "fsync": "fsync fdatasync",
    "syncfs": "syncfs",
    "create": "open openat creat",
    "none": "symlink symlinkat mknod mknodat sendfile copy_file_range splice msync sync ioctl",
}
_KIND = {call: kind for kind, calls in _CALLS.items() for call in calls.split()}
_LINE = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(\(| resumed>)(.*)")
_BEGIN = "/recording-begins"

_CHILD = f"""
import json, os, sys
from pathlib import Path
from tests.crash.operations import OPERATIONS
from tests.crash.recording import Recorder
place = Path(sys.argv[1])
scene = OPERATIONS[sys.argv[2]](place)
recorder = Recorder(scene.root, place / "attic")
try:
    os.unlink({_BEGIN!r})
except OSError:
    pass
with recorder.recording():
    scene.run(scene.root)
try:
    os.unlink({_BEGIN!r})
except OSError:
    pass
print(json.dumps(recorder.calls))
print(json.dumps([op.path for op in recorder.history.ops if op.kind == "create"]))
"""


def traced_calls(log: str, root: Path) -> tuple[Counter[str], set[str]]:
    """Calls that succeeded below ``root`` while the recorder was at work, but those for the database; and the files
    that were opened so that they could be made."""
    calls: Counter[str] = Counter()
    made: set[str] = set()
    begun: dict[str, str] = {}
    for line in log.split(_BEGIN)[1].splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        process, call, how, text = match.groups()
        if text.endswith("<unfinished ...>"):
            begun[process] = text
            continue
        if how != "(":
            text = begun.pop(process, "") + text
        kind = _KIND[call]
        if " = -1 " in text or f"{root}" not in text or f"{root}{DATABASE}" in text or "/attic/" in text:
            continue
        if kind == "create":
            if "O_CREAT" in text:
                made.add(text.split('"')[1])
            continue
        if call == "renameat2" and "RENAME_EXCHANGE" in text:
            kind = "exchange"
        if kind == "unlinkat":
            kind = "rmdir" if "AT_REMOVEDIR" in text else "unlink"
        calls[kind] += 1
    return calls, made


@pytest.mark.parametrize("name", ["resumed backup", "sync of changes", "verify", "labels"])
def test_strace_counts_the_same(name: str, place: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run(["strace", "-qq", "-f", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not trace others")
    scene, log = place / "scene", place / "log"
    scene.mkdir()
    tracer = ["strace", "-f", "-y", "-qq", "-s", "1", "-e", "signal=none", "-e", f"trace={','.join(_KIND)}"]
    done = subprocess.run(
        [*tracer, "-o", str(log), sys.executable, "-c", _CHILD, str(scene), name],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    recorded, created = map(json.loads, done.stdout.splitlines())
    root = scene / ("target" if name == "sync of changes" else "store")
    calls, made = traced_calls(log.read_text(errors="replace"), root)
    assert calls["none"] == 0
    assert calls == {kind: count for kind, count in recorded.items() if kind not in ("create", "commit")}
    assert set(created) <= made
    there_before = made - set(created)
    assert all(path.endswith(("/.lock", "/chunks.lock")) for path in there_before), there_before


# -- the model ---------------------------------------------------------------------------------------------------------


def cuts(history: History, mode: Mode, tries: int = 300) -> set[tuple[tuple[str, bytes], ...]]:
    """The trees that a cut at the end may leave."""
    states = States(history, random.Random(1))
    found = [states.at(len(history.ops), mode) for _ in range(tries)]
    return {tuple(sorted((path, contents.data) for path, contents in state.files.items())) for state in found}


def put(place: Path, *, data: bool, directory: bool) -> History:
    """A file that replaces another one, with an fsync of the new file, of the directory, or of both."""
    root = place / "root"
    root.mkdir(parents=True)
    (root / "file").write_bytes(b"old")
    recorder = Recorder(root, place / "attic")
    with recorder.recording():
        fd = os.open(root / "temp", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(fd, b"new")
        if data:
            os.fsync(fd)
        os.close(fd)
        os.rename(root / "temp", root / "file")
        if directory:
            fd = os.open(root, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    return recorder.history


OLD, NEW = (("file", b"old"),), (("file", b"new"),)
BESIDE = (("file", b"old"), ("temp", b"new"))


@pytest.mark.parametrize("mode", ["ordered", "unordered"])
def test_a_file_that_is_replaced(tmp_path: Path, mode: Mode) -> None:
    """What a power cut may leave of it depends on what was synced, and the model knows."""
    assert cuts(put(tmp_path / "1", data=True, directory=True), mode) == {NEW}
    assert cuts(put(tmp_path / "2", data=True, directory=False), mode) == {OLD, BESIDE, NEW}
    torn = cuts(put(tmp_path / "3", data=False, directory=True), mode)
    assert {NEW, (("file", b""),), (("file", bytes(3)),), (("file", b"n"),), (("file", b"ne\0"),)} <= torn
    assert all([path for path, _ in state] == ["file"] for state in torn)
    assert OLD not in torn
    assert OLD in cuts(put(tmp_path / "4", data=False, directory=False), mode)


def test_a_kill_loses_nothing(tmp_path: Path) -> None:
    assert cuts(put(tmp_path / "1", data=False, directory=False), "kill") == {NEW}


@pytest.mark.parametrize("order", ["ordered", "unordered"])
def test_names_that_do_not_depend_on_each_other(tmp_path: Path, order: Mode) -> None:
    """With a journal the first one of two is there when the second one is."""
    (tmp_path / "root").mkdir()
    recorder = Recorder(tmp_path / "root", tmp_path / "attic")
    with recorder.recording():
        for name in ("a", "b"):
            os.close(os.open(tmp_path / "root" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    found = {tuple(path for path, _ in state) for state in cuts(recorder.history, order)}
    assert found == {(), ("a",), ("a", "b")} | ({("b",)} if order == "unordered" else set())


# -- what is wrong is found --------------------------------------------------------------------------------------------


def in_place(self: Disk, path: str, parts: Buffers, mode: int, **options: Any) -> None:
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT, mode)
    for part in parts:
        os.write(fd, part)
    os.close(fd)
    os.rename(path + ".new", path)
    self.sync_directory(os.path.dirname(path))


def remove_files(self: Any, path: str) -> None:
    self._disk.remove_tree(path)


MISTAKES: dict[str, tuple[str, str, Any]] = {
    "chunks are not durable": ("first backup", "archiver.core.disk.Barrier.commit", lambda *arguments: None),
    "names are not durable": ("nightly backup", "archiver.core.disk.Disk.sync_directory", lambda *arguments: None),
    "copies are not durable": ("sync", "archiver.core.disk.Barrier.commit", lambda *arguments: None),
    "removed file by file": ("forget", "archiver.store.removal._Remover._remove", remove_files),
    "no mark": ("gc", "archiver.store.gc.references.References.mark_directory", lambda *arguments: True),
    "contents are not durable": ("key change-passphrase", "archiver.core.disk.Disk.put", in_place),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that get one thing wrong do not pass."""
    name, broken, instead = MISTAKES[mistake]
    monkeypatch.setattr(broken, instead)
    with pytest.raises((AssertionError, ArchiverError, FormatError)):
        look_at(name, place / "scene", 240, 1, 1)
