"""What cannot fit is refused before anything is written, and nothing is that could fit."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from archiver.browse.snapshot import Snapshot
from archiver.core import linux
from archiver.core.events import ignore
from archiver.errors import NoSpace
from archiver.restore import run
from archiver.restore.choice import Choice
from archiver.restore.owners import Owners
from archiver.restore.room import New, sizes
from archiver.restore.run import RestoreOptions, restore
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.cli.command import call
from tests.compare import differences
from tests.mounts import small_file_system
from tests.random_trees import build_plain, noise
from tests.stores import CHUNK_SIZE, KEY, Heard, make_store, save

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Of 32 MiB."""
    with small_file_system(tmp_path, 32 * MIB) as place:
        yield place


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def bring_to(path: Path, target: Path, heard: Heard, options: RestoreOptions | None = None) -> None:
    with Store.open(path) as store:
        snapshot = Snapshot(store, store.find("latest"))
        archives = snapshot.restorable()
        restore(snapshot, archives, str(target), verify=False, listener=heard, options=options or RestoreOptions())


def test_what_cannot_fit_is_refused(tmp_path: Path, disk: Path, source: Path) -> None:
    for number in range(12):
        (source / f"file-{number}").write_bytes(noise(number, 5 * MIB))
    store = make_store(tmp_path / "store")
    save(store, {"one": source, "two": source})
    done = call("--store", store, "restore", "latest", disk / "target", "--json")
    assert (done.code, done.error["code"]) == (40, "no-space")
    assert "MiB would be written" in done.error["message"] and "MiB are free" in done.error["message"]
    assert "--include" in done.error["hint"]
    for options in ([], ["--archive", "one.pxar"], ["--overwrite", "always"]):
        assert call("--store", store, "restore", "latest", disk / "target", *options).code == 40
    assert os.listdir(disk) == ["lost+found"]
    (disk / "target").mkdir()
    assert call("--store", store, "restore", "latest", disk / "target").code == 40
    assert os.listdir(disk / "target") == []
    part = call("--store", store, "restore", "latest", disk / "target", "--archive", "one.pxar", "--include", "/file-1")
    assert part.code == 0 and os.listdir(disk / "target") == ["file-1"]


@pytest.mark.parametrize("mode", ["data", "legacy"])
@pytest.mark.parametrize("written", [False, True])
def test_zeros_need_no_room(tmp_path: Path, disk: Path, source: Path, mode: Mode, written: bool) -> None:
    """Holes, and zeros that were written. That they may not fit is told."""
    with open(source / "sparse", "wb") as file:
        for number in range(8):
            file.write(noise(number, MIB))
            file.seek(9 * MIB, os.SEEK_CUR)
            if written:
                file.seek(-9 * MIB, os.SEEK_CUR)
                file.write(bytes(9 * MIB))
        file.truncate(file.tell())
    store = make_store(tmp_path / "store")
    save(store, source, mode=mode)
    heard = Heard()
    bring_to(store, disk / "target", heard)
    assert any("without holes in them" in text for text in heard.notices), heard.notices
    assert differences(source, disk / "target") == []


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("chunk_size", [CHUNK_SIZE, 4 * MIB])
def test_a_huge_hole_needs_no_room(tmp_path: Path, source: Path, key: CryptConfig | None, chunk_size: int) -> None:
    """What zeros take in the store is little, but they are referred to very often."""
    with open(source / "thin", "wb") as file:
        file.truncate(100_000 * 4 * chunk_size)
    store = make_store(tmp_path / "store")
    ref = save(store, source, crypt=key, chunk_size=chunk_size).snapshot
    with Store.open(store) as opened:
        snapshot = Snapshot(opened, ref, key)
        assert sizes(snapshot, New(snapshot.archive(None), "")) == (0, 100_000 * 4 * chunk_size)


def test_what_is_in_the_stream_only_needs_no_room(tmp_path: Path, disk: Path, source: Path) -> None:
    """Chunks are taken over whole, with what was removed since."""
    store = make_store(tmp_path / "store")
    for number in range(340):
        (source / f"file-{number:03}").write_bytes(noise(number, 100_000))
    save(store, source, mode="metadata", chunk_size=4 * MIB)
    for number in range(0, 340, 4):
        (source / f"file-{number:03}").unlink()
    saved = save(store, source, mode="metadata", chunk_size=4 * MIB)
    space = os.statvfs(disk)
    assert saved.result.archives[0].counters.size > space.f_bfree * space.f_frsize > 255 * 100_000
    heard = Heard()
    bring_to(store, disk / "target", heard)
    assert differences(source, disk / "target") == [] and heard.notices == []


@pytest.mark.parametrize("mode", ["data", "legacy", "metadata"])
@pytest.mark.parametrize("key", [None, KEY])
def test_no_more_is_asked_for_than_is_written(
    tmp_path: Path, source: Path, mode: Mode, key: CryptConfig | None
) -> None:
    """The least that must be free is less than what the restored files take; not much less where all is noise."""
    store = make_store(tmp_path / "store")
    for seed in range(3):
        shutil.rmtree(source)
        build_plain(source, seed, files=60, max_size=300_000)
        (source / "noise").write_bytes(noise(seed, 4 * MIB))
        with open(source / "sparse", "wb") as file:
            file.truncate(300 * 4096)
            for place in random.Random(seed).sample(range(300), 100):
                os.pwrite(file.fileno(), noise(seed + place, 4096), place * 4096)
        ref = save(store, source, mode=mode, crypt=key).snapshot
        with Store.open(store) as opened:
            snapshot = Snapshot(opened, ref, key)
            least, most = sizes(snapshot, New(snapshot.archive(None), ""))
            restore(snapshot, snapshot.restorable(), str(tmp_path / f"out-{seed}"), verify=False, listener=ignore)
        unique = files_below(tmp_path / f"out-{seed}")
        assert 4 * MIB < least <= sum(status.st_blocks * 512 for status in unique)
        assert most == sum(status.st_size for status in unique)


def files_below(place: Path) -> list[os.stat_result]:
    """Each once, however many names it has."""
    files = [path.lstat() for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    return list({status.st_ino: status for status in files}.values())


@pytest.mark.parametrize("mode", ["data", "metadata"])
@pytest.mark.parametrize("key", [None, KEY])
def test_of_a_part_no_more_is_asked_for_than_is_written(
    tmp_path: Path, source: Path, mode: Mode, key: CryptConfig | None
) -> None:
    store = make_store(tmp_path / "store")
    seed = 2 * (mode == "data") + (key is None)  # another tree each time
    shutil.rmtree(source)
    build_plain(source, seed, files=60, max_size=300_000)
    (source / "deep").mkdir()
    (source / "deep" / "noise").write_bytes(noise(seed, 4 * MIB))
    os.link(source / "deep" / "noise", source / "link")
    with open(source / "deep" / "sparse", "wb") as file:
        file.truncate(300 * 4096)
        for place in random.Random(seed).sample(range(300), 100):
            os.pwrite(file.fileno(), noise(seed + place, 4096), place * 4096)
    ref = save(store, source, mode=mode, crypt=key).snapshot
    parts = [
        RestoreOptions(include=("/deep",)),
        RestoreOptions(include=("noise", "*[0-4]*")),
        RestoreOptions(exclude=("/deep/sparse",)),
        RestoreOptions(include=("/link",)),
        RestoreOptions(path=b"deep"),
        RestoreOptions(path=b"/deep/noise"),
    ]
    for number, options in enumerate(parts):
        out = tmp_path / f"out-{number}"
        with Store.open(store) as opened:
            snapshot = Snapshot(opened, ref, key)
            archives = snapshot.restorable()
            (new,) = run._all_new(snapshot, [(archives[0], str(out))], options)
            least, most = sizes(snapshot, new)
            restore(snapshot, archives, str(out), verify=False, listener=ignore, options=options)
        unique = files_below(out) if out.is_dir() else [out.stat()]
        assert 3 * MIB < least <= sum(status.st_blocks * 512 for status in unique), options
        assert most == sum(status.st_size for status in unique), options


def test_a_part_that_cannot_fit_is_refused(tmp_path: Path, disk: Path, source: Path) -> None:
    (source / "deep").mkdir()
    for number in range(4):
        (source / "deep" / f"file-{number}").write_bytes(noise(number, 14 * MIB))
    store = make_store(tmp_path / "store")
    save(store, source)
    base = "--store", store, "restore", "latest"
    target = disk / "target"
    too_much = ["--include", "*"], ["--include", "/deep"], ["--include", "file-*"], ["--exclude", "nothing"]
    for options in too_much:
        done = call(*base, target, *options, "--json")
        assert (done.code, done.error["code"]) == (40, "no-space") and "would be written" in done.error["message"]
        assert call(*base, target, *options, "--overwrite", "always").code == 40
    assert call(*base, "deep", target).code == 40
    assert os.listdir(disk) == ["lost+found"]
    assert call(*base, target, "--include", "/deep", "--exclude", "file-[1-3]").code == 0
    # what is there already may be as it should be: only what is written is needed
    assert call(*base, target, "--include", "/deep/file-0", "--overwrite", "always").code == 0
    assert call(*base, "/deep/file-0", target / "deep", "--overwrite", "if-changed").code == 0
    assert sorted(os.listdir(target / "deep")) == ["file-0"]


def test_an_image_that_cannot_fit_is_refused(tmp_path: Path, disk: Path) -> None:
    (tmp_path / "disk").write_bytes(noise(1, 60 * MIB))
    store = make_store(tmp_path / "store")
    save(store, {"disk.img": tmp_path / "disk"}, chunk_size=4 * MIB)
    for target in (disk, disk / "copy.img", disk / "new" / "copy.img"):
        done = call("--store", store, "restore", "latest", target, "--json")
        assert (done.code, done.error["code"]) == (40, "no-space")
        assert "would be written" in done.error["message"] and "--include" not in done.error["hint"]
    assert os.listdir(disk) == ["lost+found"]


@pytest.mark.parametrize("key", [None, KEY])
def test_holes_of_an_image_need_no_room(tmp_path: Path, disk: Path, key: CryptConfig | None) -> None:
    """Chunks that are all zeros are known. That other zeros may need room is told, where it may be too much."""
    store = make_store(tmp_path / "store")
    for count in (4, 8):
        with open(tmp_path / "disk", "wb") as file:
            file.truncate(1 << 30)
            for number in range(count):
                os.pwrite(file.fileno(), noise(number, MIB), number * 32 * MIB)
        ref = save(store, {"disk.img": tmp_path / "disk"}, crypt=key, chunk_size=4 * MIB).snapshot
        heard, out = Heard(), disk / f"copy-{count}"
        with Store.open(store) as opened:
            snapshot = Snapshot(opened, ref, key)
            least, most = sizes(snapshot, New(snapshot.archive(None), ""))
            restore(snapshot, snapshot.restorable(), str(out), verify=False, listener=heard)
        taken = out.stat().st_blocks * 512
        assert (count * MIB) * 9 // 10 < least <= taken < (count + 1) * MIB and most == count * 4 * MIB
        assert any("without holes in them" in text for text in heard.notices) == (count == 8)
        out.unlink()


def test_zeros_without_end_are_nothing(tmp_path: Path, source: Path) -> None:
    """However many chunks of them there are: each takes some bytes in the store."""
    with open(source / "hole", "wb") as file:
        file.truncate(1 << 40)
    store = make_store(tmp_path / "store")
    save(store, {"tree": source, "disk.img": source / "hole"}, chunk_size=4 * MIB)
    with Store.open(store) as opened:
        snapshot = Snapshot(opened, opened.find("latest"))
        tree, image = (snapshot.archive(name) for name in ("tree.pxar", "disk.img"))
        everything = Choice.of(["*"], [], Owners())
        assert sizes(snapshot, New(tree, "")) == (0, 1 << 40)
        assert sizes(snapshot, New(tree, "", lambda: (snapshot.tree(tree), everything))) == (0, 1 << 40)
        assert sizes(snapshot, New(image, "")) == (0, 0)


def test_a_drill_needs_room_for_its_files_only(tmp_path: Path, disk: Path, source: Path) -> None:
    for number in range(12):
        (source / f"file-{number}").write_bytes(noise(number, 5 * MIB))
    store = make_store(tmp_path / "store")
    save(store, source)
    done = call("--store", store, "drill", "--files", "1", "--scratch", disk)
    assert done.code == 0, done.err


def test_nothing_is_refused_where_nothing_is_certain(
    tmp_path: Path, disk: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where the file system may compress, nor without the database."""
    for number in range(12):
        (source / f"file-{number}").write_bytes(noise(number, 5 * MIB))
    store = make_store(tmp_path / "store")
    save(store, source)
    with pytest.raises(NoSpace, match="would be written"):
        bring_to(store, disk / "target", Heard())
    heard = Heard()
    with monkeypatch.context() as patched, pytest.raises(NoSpace, match=r"restore .*/file-"):
        patched.setattr(linux, "stores_as_it_is", lambda path: False)
        bring_to(store, disk / "target", heard)
    assert any("without holes in them" in text for text in heard.notices), heard.notices
    shutil.rmtree(disk / "target")
    monkeypatch.setattr(Store, "database", None)
    with pytest.raises(NoSpace, match=r"restore .*/file-"):
        bring_to(store, disk / "target", Heard())
