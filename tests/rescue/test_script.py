"""The rescue script: with nothing but itself it gives back what the program gives back."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

import archiver.rescue
from archiver.backup.run import Mode
from archiver.rescue import script
from archiver.store.store import Store
from formats import blob
from tests.attributes import unlock_tree, write_sparse
from tests.cli.command import Done, ask, call
from tests.compare import NOT_KEPT, compare_descriptions, snapshot_tree
from tests.golden_data import content
from tests.golden_store import DATASTORE, ENCRYPTED, KEY, PLAIN, unpack
from tests.hostile.build import corpus
from tests.random_trees import build_plain
from tests.restore.planted import plant, sample
from tests.restore.test_hostile import state_of_the_outside
from tests.source.sandbox import IS_ROOT, NOBODY, as_ordinary_user, world_readable_directory
from tests.stores import bring_back, chunk_files, make_store, save
from tests.trees import build_features

SCRIPT = Path(archiver.rescue.__file__).with_name("script.py")
GIB = 1 << 30
NOT_RESTORED = NOT_KEPT | {"flags", "project"}  # as the script says
needs_root = pytest.mark.skipif(not IS_ROOT, reason="owners and devices can be restored by root only")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    unlock_tree(tmp_path)
    subprocess.run(["rm", "-rf", str(tmp_path)], check=True)


def rescue(*arguments: str | Path, program: Path = SCRIPT, **options: object) -> Done:
    """The script in a Python of its own, without this program and without any package."""
    command = [sys.executable, "-I", "-S", str(program), *map(str, arguments)]
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, check=False, **options)  # type: ignore[call-overload]
    error = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in error, error
    return Done(done.returncode, done.stdout, error)


# What it gives back.


@needs_root
@pytest.mark.parametrize("name", PLAIN)
def test_golden_snapshots(place: Path, name: str) -> None:
    store = unpack(place)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    done = rescue("extract", store, name, place / "out")
    assert done.code == 0, done.err
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    with Store.open(store, read_only=True) as opened:
        ref = opened.find(name)
    archives = sorted(os.listdir(place / "out"))
    for archive in archives:
        bring_back(store, ref, place / "ours", archives=[archive], crypt=KEY if "signed" in name else None)
        ours, theirs = place / "ours", place / "out" / archive
        if archive.endswith(".pxar"):
            assert compare_descriptions(snapshot_tree(ours), snapshot_tree(theirs), ignore=NOT_RESTORED) == []
            unlock_tree(ours)
            shutil.rmtree(ours)
        else:
            assert ours.read_bytes() == theirs.read_bytes()
            ours.unlink()
    named = {file["filename"] for file in ask("--store", store, "files", name)["items"]}
    assert len(archives) == len({file.split(".")[0] for file in named} - {"index", "catalog", "client"})
    if name == PLAIN[5]:
        image = place / "out/drive-scsi0.img"
        assert image.read_bytes() == content(DATASTORE["image"])
        assert image.stat().st_blocks * 512 < image.stat().st_size - (3 << 20)
        assert (place / "out/qemu-server.conf").read_bytes() == content(DATASTORE["conf"])


@needs_root
@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_every_kind_of_entry(place: Path, mode: Mode) -> None:
    build_features(place / "source", as_root=True)
    store = make_store(place / "store")
    saved = save(store, place / "source", mode=mode)
    done = rescue("extract", store, "host/test", place / "out")
    assert (done.code, done.err) == (0, "")
    found = snapshot_tree(place / "out/tree.pxar")
    assert compare_descriptions(snapshot_tree(place / "source"), found, ignore=NOT_RESTORED) == []
    bring_back(store, saved.snapshot, place / "ours")
    assert compare_descriptions(snapshot_tree(place / "ours"), found, ignore=NOT_RESTORED) == []


def test_a_hole_of_hundreds_of_gib(place: Path) -> None:
    """Its zeros are neither decoded nor looked at one by one, which would take minutes."""
    (place / "source").mkdir()
    parts = {5 * GIB: b"data" * 9000, 299 * GIB + 12345: b"more"}
    write_sparse(place / "source/disk", 300 * GIB, parts)
    os.sync()
    store = make_store(place / "store")
    save(store, place / "source", chunk_size=4 << 20)
    done = rescue("extract", store, "host/test", place / "out")
    assert (done.code, done.err) == (0, "")
    disk = place / "out/tree.pxar/disk"
    assert disk.stat().st_size == 300 * GIB and disk.stat().st_blocks * 512 < 1 << 20
    with disk.open("rb") as file:
        for offset, data in parts.items():
            assert os.pread(file.fileno(), len(data) + 2, offset - 1) == b"\0" + data + b"\0"


@needs_root
def test_ordinary_user() -> None:
    """Contents come back, what root alone may do is told, and nothing is handed out that its owner kept."""
    with world_readable_directory() as place:
        build_plain(place / "source", 1, files=30)
        (place / "source/program").write_bytes(b"#!/bin/sh\n")
        os.chmod(place / "source/program", 0o4755)
        save(make_store(place / "store"), place / "source")
        subprocess.run(["chmod", "-R", "a+rX", str(place / "store")], check=True)
        os.chown(place, NOBODY, NOBODY)
        codes: list[int] = []

        def work() -> None:
            codes.append(script.main(["extract", str(place / "store"), "host/test", str(place / "out")]))
            assert (place / "out/tree.pxar/program").stat().st_mode & 0o7777 == 0o755

        as_ordinary_user(work)
        for path in (place / "source").rglob("*"):
            if path.is_file():
                assert (place / "out/tree.pxar" / path.relative_to(place / "source")).read_bytes() == path.read_bytes()


def test_chosen_paths(place: Path) -> None:
    build_plain(place / "source", 2, files=40)
    (place / "source/a/b").mkdir(parents=True)
    (place / "source/a/b/file").write_bytes(b"linked")
    (place / "source/z").mkdir()
    os.link(place / "source/a/b/file", place / "source/z/link")
    store = make_store(place / "store")
    save(store, place / "source")
    assert rescue("extract", store, "host/test", place / "one", "--only", "tree.pxar/z/link").code == 0
    assert [path.name for path in (place / "one").rglob("*") if path.is_file()] == ["link"]
    assert (place / "one/tree.pxar/z/link").read_bytes() == b"linked", "what it leads to was not chosen"
    assert (
        rescue("extract", store, "host/test", place / "two", "--only", "tree.pxar/a", "--only", "tree.pxar/z").code == 0
    )
    assert {str(path.relative_to(place / "two/tree.pxar")) for path in (place / "two/tree.pxar").rglob("*")} == {
        "a", "a/b", "a/b/file", "z", "z/link"
    }  # fmt: skip
    assert (place / "two/tree.pxar/a/b/file").samefile(place / "two/tree.pxar/z/link")
    done = rescue("extract", store, "host/test", place / "three", "--only", "absent.pxar")
    assert done.code == 2 and "no archive absent.pxar" in done.err


def test_lists(place: Path) -> None:
    store = unpack(place)
    done = rescue("list", store)
    assert done.code == 0
    assert {line.split()[0] for line in done.lines} == {*PLAIN, *ENCRYPTED}
    assert all(("(encrypted)" in line) == line.startswith(ENCRYPTED) for line in done.lines)
    listed = rescue("list", store, PLAIN[3])
    ours = {item["path"] for item in ask("--store", store, "ls", PLAIN[3], "-R")["items"]}
    assert listed.code == 0 and len(listed.lines) == len(ours) + 1
    assert rescue("list", store, "host/alpha").out == rescue("list", store, PLAIN[2]).out
    for arguments in (("list", store, "host/absent"), ("list", place), ("extract", store, "host/alpha", store)):
        assert rescue(*arguments).code == 2
    assert rescue("--help").code == 0 and rescue().code == 2


def test_names_that_would_steer_a_terminal(place: Path) -> None:
    (place / "source").mkdir()
    (place / "source/\x1b[31m\udcff").write_bytes(b"x")
    store = make_store(place / "store")
    save(store, place / "source")
    done = rescue("list", store, "host/test")
    assert done.code == 0 and b"\x1b" not in done.raw and "\\x1b[31m" in done.out


@pytest.mark.parametrize("name", ENCRYPTED)
def test_encrypted(place: Path, name: str) -> None:
    done = rescue("extract", unpack(place), name, place / "out")
    assert done.code == 12 and "takes archiver, and the key" in done.err
    assert set(os.listdir(place / "out")) <= {"rsa-encrypted.key"}


# Damage.


def test_damaged_chunk_costs_its_files_only(place: Path) -> None:
    build_plain(place / "source", 3, files=60, max_size=200_000)
    store = make_store(place / "store")
    saved = save(store, place / "source")
    largest = max(chunk_files(store), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    done = rescue("extract", store, "host/test", place / "out")
    assert done.code == 20 and largest.name in done.err
    found = {path.relative_to(place / "out/tree.pxar") for path in (place / "out").rglob("*") if path.is_file()}
    wanted = {path.relative_to(place / "source") for path in (place / "source").rglob("*") if path.is_file()}
    assert found < wanted and len(wanted) - len(found) == len(done.err.splitlines()) < 40
    for path in found:
        assert (place / "out/tree.pxar" / path).read_bytes() == (place / "source" / path).read_bytes()
    assert saved.result.errors == []


@pytest.mark.parametrize("suffix", ["index.json.blob", "tree.mpxar.didx", "tree.ppxar.didx"])
@pytest.mark.parametrize("place_of_damage", [0, 8, 64, -1])
def test_damaged_files_of_a_snapshot(place: Path, suffix: str, place_of_damage: int) -> None:
    (place / "source").mkdir()
    (place / "source/file").write_bytes(b"contents")
    store = make_store(place / "store")
    path = store / save(store, place / "source").snapshot.path / suffix
    data = bytearray(path.read_bytes())
    data[place_of_damage] ^= 0x55
    path.write_bytes(data)
    done = rescue("extract", store, "host/test", place / "out")
    if suffix.endswith("didx") and place_of_damage in (8, 64):  # of the header, which says nothing that is needed
        assert done.code == 0 and (place / "out/tree.pxar/file").read_bytes() == b"contents"
    else:
        assert done.code == 20 and not (place / "out/tree.pxar/file").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"files": [7]}',
        b'{"backup-time": 1e300}',
        b'{"backup-time": "x"}',
        b'{"backup-time": 1' + b"0" * 30 + b"}",
    ],
)
def test_manifests_of_nonsense(place: Path, text: bytes) -> None:
    """Each is damage, and the others are listed all the same."""
    (place / "source").mkdir()
    store = make_store(place / "store")
    bad = save(store, place / "source", time=1_700_000_000).snapshot
    good = save(store, place / "source", time=1_700_000_001).snapshot
    (store / bad.path / "index.json.blob").write_bytes(blob.encode(text))
    done = rescue("list", store)
    assert done.code == 20 and str(good) in done.out and f"{bad}: the manifest" in done.err


@pytest.mark.parametrize("count", [150, pytest.param(10**6, marks=pytest.mark.slow)])
def test_hostile_archives(place: Path, count: int) -> None:
    """Nothing outside of the target is touched, whatever an archive says."""
    store, outside = make_store(place / "store"), place / "outside"
    for path in (outside, outside / "x"):
        path.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    before = state_of_the_outside(outside)
    archives = corpus(os.fsencode(outside))
    target = place / "work/target"
    target.parent.mkdir()
    with Store.open(store) as opened:
        short = [name for name in archives if "too few bytes" in name]
        for when, name in enumerate(dict.fromkeys([*short, *sample(archives, count)]), 1):
            ref = plant(opened, when, archives[name].archive, archives[name].payload)
            code = script.main(["extract", str(store), str(ref), str(target)])
            assert code in (0, 3, 20), name
            assert os.listdir(target.parent) == ["target"], name
            assert set(os.listdir(target)) <= {"x.pxar"}, name
            unlock_tree(target)
            subprocess.run(["rm", "-rf", str(target)], check=True)
    assert state_of_the_outside(outside) == before


def test_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that gets a thousand times as large is not unpacked to its end."""
    bomb = zstandard.compress(bytes(64 << 20))
    for way in ("zstandard", "zstd"):
        assert script.WAYS[way]()(bomb, 1000) == bytes(1000)


# Where it runs.


def test_ways_to_decompress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.14's module is stood in for by one with the same function, where there is an older Python."""
    if sys.version_info < (3, 14):
        module = types.ModuleType("compression.zstd")
        module.ZstdFile = lambda file: zstandard.open(file, "rb")  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "compression", types.ModuleType("compression"))
        monkeypatch.setitem(sys.modules, "compression.zstd", module)
    data = b"contents " * 1000
    stored = bytes(blob.encode(data))[12:]
    without_size = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    for way in ("compression.zstd", "zstandard", "zstd"):
        decompress = script.WAYS[way]()
        assert decompress(stored, 1 << 20) == decompress(without_size, 1 << 20) == data
        with pytest.raises(Exception):  # noqa: B017  each has its own
            decompress(b"no frame", 10)
    monkeypatch.setattr(script, "WAYS", {})
    with pytest.raises(script.Refused, match="install"):
        script.find_decompressor()


def test_it_is_of_python_3_8() -> None:
    """By its grammar, and without what the standard library got later."""
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    later = {"removeprefix", "removesuffix", "pairwise", "batched", "cache", "is_relative_to", "bit_count"}
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Attribute) or node.attr not in later
        assert not isinstance(node, ast.keyword) or node.arg not in ("strict", "slots", "kw_only", "usedforsecurity")
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert all(name in sys.stdlib_module_names | {"__future__"} for name in names)
        if isinstance(node, ast.With):  # a form in parentheses would have several
            assert len(node.items) == 1


# The command.


def test_command(place: Path) -> None:
    document = ask("rescue-script", place / "rescue.py")
    assert document == {"schema": 1, "path": str(place / "rescue.py"), "size": SCRIPT.stat().st_size}
    assert (place / "rescue.py").read_bytes() == SCRIPT.read_bytes() == call("rescue-script").raw
    assert os.access(place / "rescue.py", os.X_OK)
    assert call("rescue-script", place).code == 2, "it is there already"
    (place / "drive").mkdir()
    assert ask("rescue-script", place / "drive")["path"] == str(place / "drive/rescue.py")
    assert call("rescue-script", "--json").code == 2
    assert call("rescue-script", place / "absent/rescue.py").code == 1


@needs_root
def test_disaster_with_nothing_but_the_script(place: Path) -> None:
    """The machine is gone; there is a drive with the store and the script, and some Linux with Python and zstd."""
    build_features(place / "source", as_root=True)
    (place / "disk").write_bytes(os.urandom(3 << 20).ljust(9_000_001, b"\0"))
    (place / "fstab").write_bytes(b"/dev/sda1 / ext4\n")
    drive = place / "drive"
    drive.mkdir()
    ask("init", drive / "store")
    specs = (f"home.pxar:{place / 'source'}", f"disk.img:{place / 'disk'}", f"fstab.conf:{place / 'fstab'}")
    done = ask("--store", drive / "store", "backup", *specs, "--id", "lost", "--crypt", "none")
    ask("rescue-script", drive)
    before, disk = snapshot_tree(place / "source"), (place / "disk").read_bytes()
    unlock_tree(place / "source")
    for lost in (place / "source", place / ".xdg", drive / "store/.archiver"):  # not even the database
        shutil.rmtree(lost, ignore_errors=True)
    (place / "disk").unlink()
    (place / "fstab").unlink()
    listed = rescue("list", drive / "store", program=drive / "rescue.py")
    assert listed.out.split() == [done["snapshot"], "home.pxar", "disk.img", "fstab.conf"]
    found = rescue("extract", drive / "store", "host/lost", place / "new", program=drive / "rescue.py")
    assert (found.code, found.err) == (0, "")
    assert compare_descriptions(before, snapshot_tree(place / "new/home.pxar"), ignore=NOT_RESTORED) == []
    assert (place / "new/disk.img").read_bytes() == disk
    assert (place / "new/fstab.conf").read_bytes() == b"/dev/sda1 / ext4\n"


def test_key_in_a_snapshot(place: Path) -> None:
    """The wrapped key of an encrypted snapshot is plain, and comes out for whoever has the private master key."""
    store = unpack(place)
    rescue("extract", store, ENCRYPTED[0], place / "out", "--only", "rsa-encrypted.key")
    ask("--store", store, "restore", ENCRYPTED[0], place / "ours", "--archive", "rsa-encrypted.key")
    assert (place / "out/rsa-encrypted.key").read_bytes() == (place / "ours").read_bytes()
