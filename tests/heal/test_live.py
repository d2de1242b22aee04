"""Chunks from the live files: exactly those come back whose contents are still there, and never wrong bytes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from archiver.browse.snapshot import Snapshot
from archiver.errors import UsageError
from archiver.heal.source import LivePlace
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig, chunk_digest
from formats.pxar.decoder import LEAVE
from tests.browse.test_corruptions import with_image
from tests.heal.healing import checked, chunks_of, heal
from tests.random_trees import build_plain, mutate, noise
from tests.stores import KEY, bring_back, chunk_files, make_store, restored_differences, save

pytestmark = pytest.mark.in_memory


def lose(files: list[Path]) -> dict[Path, bytes]:
    lost = {file: file.read_bytes() for file in files}
    for file in files:
        file.unlink()
    return lost


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_all_contents_of_a_tree(tmp_path: Path, crypt: CryptConfig | None) -> None:
    """Plain chunks are the same files as before; encrypted ones the same contents."""
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    build_plain(tree, 1, files=60, max_size=200_000)
    (tree / "sparse").touch()
    os.truncate(tree / "sparse", 1 << 20)
    (tree / "hard").hardlink_to(tree / "sparse")
    ref = save(path, tree, crypt=crypt).snapshot
    lost = lose(chunks_of(path, ref, ".ppxar.didx"))
    assert len(lost) > 10
    plan, result = heal(path, live=[tree], crypt=crypt)
    assert [damage.remedy for damage in plan.damages] == [f"the live files in {tree}"] * len(lost)
    assert not plan.remaining and not result.failed
    assert crypt is not None or {file: file.read_bytes() for file in lost} == lost
    assert checked(path, crypt).errors == []
    assert restored_differences(path, ref, tree, tmp_path / "out", crypt) == []


@pytest.mark.parametrize("seed", range(8))
def test_trees_that_have_changed(tmp_path: Path, seed: int) -> None:
    """Several snapshots with chunks that are reused, some of them padded; any chunks are lost."""
    rng = random.Random(seed)
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    build_plain(tree, seed, files=30, max_size=150_000)
    refs = []
    for run in range(3):
        refs.append(save(path, tree, mode="metadata", time=1_700_000_000 + run).snapshot)
        if run < 2:
            mutate(tree, 10 * seed + run, 5)
    metadata = {file for ref in refs for file in chunks_of(path, ref, ".mpxar.didx")}
    contents = sorted(set(chunk_files(path)) - metadata)
    lost = lose(rng.sample(contents, rng.randint(1, len(contents))))
    plan, result = heal(path, live=[f"tree.pxar:{tree}"])
    healed = {file for file in lost if file.exists()}
    assert all(file.read_bytes() == lost[file] for file in healed)
    assert not result.failed and len(plan.remaining) == len(lost) - len(healed)
    named = {error.chunk for error in checked(path).errors}
    assert named == {file.name for file in lost.keys() - healed}
    with Store.open(path) as store:  # nothing but padding keeps a chunk of the newest snapshot from being made
        snapshot = Snapshot(store, refs[-1])
        saved = snapshot.tree(snapshot.archive(None))
        index = saved.content.index
        parts = [(0, 16), (index.size - 16, index.size)]
        for entry in saved.decoder():
            if entry is not LEAVE and entry.kind == "file":
                parts.append((entry.content_offset - 16, entry.content_offset + entry.size))
        for number in range(len(index)):
            start, end = index.start(number), index.end(number)
            known = sum(max(0, min(end, b) - max(start, a)) for a, b in parts)
            file = Path(store.layout.chunk(index.digest(number).hex()))
            assert file.exists() or known < end - start or file not in lost


def test_one_stream(tmp_path: Path) -> None:
    """Of an archive in one stream: what lies wholly in the contents of a file."""
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    tree.mkdir()
    (tree / "a").write_bytes(noise(1, 900_000))
    (tree / "b").write_bytes(noise(2, 900_000))
    ref = save(path, tree, mode="legacy").snapshot
    files = chunks_of(path, ref, ".pxar.didx")
    lost = lose(files[2:5])
    plan, _ = heal(path, live=[tree])
    assert not plan.remaining and {file: file.read_bytes() for file in lost} == lost
    lost = lose([files[0], files[4]])
    plan, _ = heal(path, live=[tree])
    assert [damage.name for damage in plan.remaining] == [files[0].name, files[4].name]


def test_changed_and_hostile_files(tmp_path: Path) -> None:
    """Another file of the same length, a fifo, a link in the place of a file: nothing of that is ever stored."""
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    tree.mkdir()
    for number, name in enumerate("abcd"):
        (tree / name).write_bytes(noise(number, 300_000))
    ref = save(path, tree).snapshot
    lost = lose(chunks_of(path, ref, ".ppxar.didx"))
    (tree / "a").write_bytes(noise(9, 300_000))
    (tree / "b").unlink()
    os.mkfifo(tree / "b")
    (tree / "c").rename(tmp_path / "elsewhere")
    (tree / "c").symlink_to(tmp_path / "elsewhere")
    plan, _ = heal(path, live=[tree])
    healed = {file for file in lost if file.exists()}
    assert healed and {file: file.read_bytes() for file in healed} == {file: lost[file] for file in healed}
    paths = {file.path for damage in plan.remaining for place in damage.places for file in place.files}
    assert paths >= {"/a", "/b", "/c"}
    healed_only = {
        file.path for damage in plan.damages if damage.healed for place in damage.places for file in place.files
    }
    assert healed_only == {"/d"}
    for name in "abc":
        (tree / name).unlink()
        (tree / name).write_bytes(noise("abcd".index(name), 300_000))
    assert not heal(path, live=[tree])[0].remaining
    assert bring_back(path, ref, tmp_path / "out").problems == []


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_image_and_blob(tmp_path: Path, crypt: CryptConfig | None) -> None:
    path = make_store(tmp_path / "store")
    ref = SnapshotRef(GroupRef("", "vm", "100"), 1_700_000_000)
    images = {"disk.img": noise(1, 400_000), "notes.conf": b"some notes\n" * 9}
    with Store.open(path) as store:
        with_image(store, ref, images, crypt, random.Random(1))
    for name, data in images.items():  # devices have many names
        (tmp_path / f"real {name}").write_bytes(data)
        (tmp_path / name).symlink_to(f"real {name}")
    lose(chunk_files(path))
    notes = path / ref.path / "notes.conf.blob"
    before = notes.read_bytes()
    notes.write_bytes(b"")
    plan, _ = heal(path, live=[f"disk.img:{tmp_path}/disk.img", f"{tmp_path}/notes.conf"], crypt=crypt)
    assert checked(path, crypt).error_count == (0 if crypt is None else 1)
    if crypt is None:
        assert not plan.remaining and notes.read_bytes() == before
    else:  # another IV would make another file than the manifest describes
        assert [damage.kind for damage in plan.remaining] == ["blob"]
    with Store.open(path) as store:
        snapshot = Snapshot(store, ref, crypt)
        assert b"".join(map(bytes, snapshot.contents(snapshot.archive("disk.img")))) == images["disk.img"]


def test_without_the_key_nothing_encrypted_is_made(tmp_path: Path) -> None:
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    build_plain(tree, 1, files=5, max_size=50_000)
    ref = save(path, tree, crypt=KEY).snapshot
    lost = lose(chunks_of(path, ref, ".ppxar.didx"))
    plan, _ = heal(path, live=[tree])
    assert len(plan.remaining) == len(lost) and not any(file.exists() for file in lost)
    assert not heal(path, live=[tree], crypt=KEY)[0].remaining
    assert all(blob.inspect(file.read_bytes()).encrypted for file in lost)
    plain = bytes(blob.decode(next(iter(lost)).read_bytes(), KEY))
    assert chunk_digest(plain, KEY).hex() == next(iter(lost)).name


@pytest.mark.parametrize("mode", ["data", "legacy"])
def test_names_that_are_lost_too(tmp_path: Path, mode: Mode) -> None:
    """Without any names nothing can be made again, and it is said so."""
    path, tree = make_store(tmp_path / "store"), tmp_path / "tree"
    build_plain(tree, 1, files=5, max_size=50_000)
    save(path, tree, mode=mode)
    lost = lose(chunk_files(path))
    plan, result = heal(path, live=[tree])
    assert len(plan.remaining) == len(lost) and not result.failed and not chunk_files(path)


def test_where_the_source_is(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert LivePlace.parse(f"{tmp_path}/a:b") == LivePlace(f"{tmp_path}/a:b", None)
    assert LivePlace.parse(f"home.pxar:{tmp_path}/a:b") == LivePlace(f"{tmp_path}/a:b", "home.pxar")
    assert LivePlace.parse(f"disk.img:{tmp_path}/a:b/../a:b") == LivePlace(f"{tmp_path}/a:b", "disk.img")
    for text in (f"{tmp_path}/nothing", f"home.pxar:{tmp_path}/nothing", "", "home.pxar:", f"home:{tmp_path}"):
        with pytest.raises(UsageError):
            LivePlace.parse(text)
