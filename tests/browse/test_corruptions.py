"""Whatever happens to any file of a store: verify finds what a restore could meet, no restore gives wrong bytes, and
heal brings all of it back from a copy.

The database is left out here: it is read by nobody who restores, and tests/store/test_database_robustness does worse to
it, in processes of their own.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from archiver.backup.run import CryptMode, Mode
from archiver.browse.snapshot import ArchiveFiles, Snapshot
from archiver.browse.verify import VerifyOptions, VerifyResult, verify
from archiver.core.events import ignore
from archiver.errors import ArchiverError
from archiver.heal.candidates import OtherStore
from archiver.heal.identity import heal_identity
from archiver.heal.plan import HealOptions, make_plan
from archiver.heal.run import carry_out
from archiver.restore.run import restore
from archiver.store.indexes import is_index
from archiver.store.layout import MANIFEST, GroupRef, SnapshotRef
from archiver.store.store import Store
from formats import blob
from formats.crypt import CryptConfig, chunk_digest
from formats.index import FixedIndexWriter
from formats.manifest import FileInfo, Manifest
from tests.random_trees import build_plain, mutate
from tests.stores import KEY, Ahead, every_snapshot, save

KINDS: tuple[tuple[str, Mode, CryptMode], ...] = (
    ("plain", "data", "none"),
    ("old", "legacy", "none"),
    ("signed", "metadata", "sign-only"),
    ("sealed", "metadata", "encrypt"),
)
IMAGE_CHUNK = 1 << 16


@dataclass
class Saved:
    """A store, its copy, the contents of everything in it by snapshot and name, and the snapshots that a file of the
    store belongs to, by its path in there."""

    store: Path
    copy: Path
    contents: dict[SnapshotRef, dict[str, bytes]] = field(default_factory=dict)
    users: dict[str, set[SnapshotRef]] = field(default_factory=dict)

    def find_users(self) -> None:
        with Store.open(self.store, read_only=True) as store:
            for ref in self.contents:
                snapshot = Snapshot(store, ref)
                for name in (MANIFEST, *(file.filename for file in snapshot.manifest.files)):
                    self.users[f"{ref.path}/{name}"] = {ref}
                for file in snapshot.manifest.files:
                    for digest in snapshot.index(file).digests if is_index(file.filename) else ():
                        chunk = os.path.relpath(store.layout.chunk(bytes(digest).hex()), self.store)
                        self.users.setdefault(chunk, set()).add(ref)

    def concerned(self, touched: set[str], rng: random.Random) -> list[SnapshotRef]:
        """The snapshots that what was done to these files may have hurt, and any other one."""
        everything = sorted(self.contents)
        if touched <= self.users.keys():
            return sorted(set().union(*(self.users[name] for name in touched), rng.sample(everything, 1)))
        return everything


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Snapshots of each kind of trees, and of images with a blob; some share chunks with another one."""
    place = tmp_path_factory.mktemp("corruptions")
    kept, tree = Saved(place / "store", place / "copy"), place / "tree"
    Store.create(kept.store, name="test")
    build_plain(tree, 1, files=10, max_size=60_000)
    rng = random.Random(1)
    for run in range(2):
        for name, mode, crypt_mode in KINDS if run else KINDS[-1:]:
            crypt = None if crypt_mode == "none" else KEY
            options: Any = {"mode": mode, "crypt": crypt, "crypt_mode": crypt_mode, "time": 1000 + run}
            ref = save(kept.store, tree, group=GroupRef("", "host", name), **options).snapshot
            kept.contents[ref] = files_of(tree)
        images = {"disk.img": rng.randbytes(150_000) + bytes(run * 50_000 + 1), "notes.conf": rng.randbytes(300) * 3}
        for crypt in (None, KEY):
            ref = SnapshotRef(GroupRef("", "vm", "images" if crypt is None else "sealed-images"), 1000 + run)
            with Store.open(kept.store) as store:
                with_image(store, ref, images, crypt, rng)
            kept.contents[ref] = images
        mutate(tree, run, 4)
    shutil.copytree(kept.store, kept.copy, ignore=shutil.ignore_patterns(".archiver"))
    Store.renew(kept.copy)
    kept.find_users()
    return kept


def with_image(
    store: Store, ref: SnapshotRef, images: dict[str, bytes], crypt: CryptConfig | None, rng: random.Random
) -> None:
    """A snapshot of an image and a blob, as a PBS has them of machines."""
    mode: Any = "none" if crypt is None else "encrypt"
    directory = Path(store.layout.snapshot(ref))
    directory.mkdir(parents=True)
    image = images["disk.img"]
    index = FixedIndexWriter(bytes(16), ref.time, len(image), IMAGE_CHUNK)
    for start in range(0, len(image), IMAGE_CHUNK):
        data = image[start : start + IMAGE_CHUNK]
        digest = chunk_digest(data, crypt)
        index.add(start + len(data), digest)
        chunk = Path(store.layout.chunk(digest.hex()))
        chunk.parent.mkdir(exist_ok=True)
        chunk.write_bytes(blob.encode(data, crypt, rng.randbytes(16) if crypt else None))
    entries = index.take()
    (directory / "disk.img.fidx").write_bytes(index.finish() + entries)
    notes = blob.encode(images["notes.conf"], crypt, rng.randbytes(16) if crypt else None)
    (directory / "notes.conf.blob").write_bytes(notes)
    files = (
        FileInfo("disk.img.fidx", mode, index.size, index.csum),
        FileInfo("notes.conf.blob", mode, len(notes), sha256(notes).digest()),
    )
    manifest = Manifest(ref.group.type, ref.group.id, ref.time, files, {}, None)
    (directory / MANIFEST).write_bytes(blob.encode((manifest.sign(crypt) if crypt else manifest).encode()))


def files_of(tree: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


# -- corruptions -------------------------------------------------------------------------------------------------------


def flip(rng: random.Random, path: Path, _: Path) -> None:
    data = bytearray(path.read_bytes())
    for _number in range(rng.choice([1, 1, 1, 3, 20])):
        if data:
            data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    path.write_bytes(data)


def truncate(rng: random.Random, path: Path, _: Path) -> None:
    os.truncate(path, rng.choice([0, rng.randrange(path.stat().st_size + 1), max(path.stat().st_size - 1, 0)]))


def delete(_rng: random.Random, path: Path, _: Path) -> None:
    path.unlink()


def swap(_rng: random.Random, path: Path, other: Path) -> None:
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)


def zero(rng: random.Random, path: Path, _: Path) -> None:
    size = path.stat().st_size
    start = rng.choice([0, rng.randrange(size + 1)])
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(rng.choice([size - start, min(size - start, 16)])))


def duplicate(rng: random.Random, path: Path, other: Path) -> None:
    """Of the file over another one, or of some bytes in it."""
    data = path.read_bytes()
    if rng.random() < 0.7:
        other.write_bytes(data)
    else:
        start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        path.write_bytes(data[:end] + data[start:])


WAYS: tuple[Callable[[random.Random, Path, Path], None], ...] = (flip, truncate, delete, swap, zero, duplicate)


def corrupt(rng: random.Random, store: Path) -> tuple[str, set[str]]:
    """Do something to one or two files; says what, and to which."""
    files = sorted(path for path in store.rglob("*") if path.is_file() and "db" not in path.parts)
    chunks = [path for path in files if ".chunks" in path.parts]
    snapshots = [path for path in files if path.relative_to(store).parts[0] == "host"]
    some = rng.choice([chunks, chunks, snapshots, snapshots, files])
    path, way = rng.choice(some), rng.choice(WAYS)
    alike = [other for other in files if other.name == path.name or other.parent.parent == path.parent.parent]
    other = rng.choice(rng.choice([some, alike or some]))
    for each in {path, other}:  # they are links to the files of the store that is kept
        data = each.read_bytes()
        each.unlink()
        each.write_bytes(data)
    way(rng, path, other)
    names = [str(each.relative_to(store)) for each in (path, other)]
    return f"{way.__name__} {' '.join(names)}", set(names)


# -- what comes of it --------------------------------------------------------------------------------------------------


def is_whole(store: Store, ref: SnapshotRef, wanted: dict[str, bytes], target: Path, text: str) -> bool:
    """Whether all of a snapshot comes back; wrong bytes are never handed out."""
    crypt = KEY if ref.group.id.startswith("s") else None
    try:
        snapshot = Snapshot(store, ref, crypt)
        archives = {archive.name: archive for archive in snapshot.archives()}
        if ref.group.type == "host":
            return tree_is_whole(snapshot, archives["tree.pxar"], wanted, target, text)
    except (ArchiverError, KeyError):
        return False
    whole = True
    for name, data in wanted.items():
        try:
            assert b"".join(map(bytes, snapshot.contents(archives[name]))) == data, (text, ref, name)
        except (ArchiverError, KeyError):
            whole = False
    return whole


def tree_is_whole(snapshot: Snapshot, tree: ArchiveFiles, wanted: dict[str, bytes], target: Path, text: str) -> bool:
    hurt: set[str] = set()
    try:
        result = restore(snapshot, [tree], str(target), verify=False, listener=ignore)
    except ArchiverError:
        whole = False
    else:
        hurt = {os.fsdecode(problem.path) for problem in result.problems if problem.kind == "damaged"}
        whole = not hurt
    got = files_of(target) if target.exists() else {}
    for name, data in got.items():
        assert data == wanted[name] or any(name in path for path in hurt), (text, snapshot.ref, name)
    if whole:
        assert got.keys() == wanted.keys(), (text, snapshot.ref)
    shutil.rmtree(target, ignore_errors=True)
    return whole


def look(path: Path, refs: list[SnapshotRef], options: VerifyOptions) -> VerifyResult | None:
    """None when the store cannot even be opened."""
    try:
        with Store.open(path, clock=Ahead()) as store:
            return verify(store, refs, KEY, ignore, options)
    except ArchiverError:
        return None


def files_in(store: Path) -> dict[str, int]:
    """Inode numbers of all files but the database's, by their paths in the store."""
    found = {}
    for directory, names, files in os.walk(store):
        names[:] = [name for name in names if name != "db"]
        found.update(
            {os.path.relpath(path := os.path.join(directory, name), store): os.lstat(path).st_ino for name in files}
        )
    return found


def mend(place: Path, store: Path, sound: dict[str, int]) -> None:
    """Make the files of the copy at ``place`` links to those of ``store`` again."""
    now = files_in(place)
    for name in now.keys() - sound.keys():
        (place / name).unlink()
    for name, inode in sound.items():
        if now.get(name) != inode:
            (place / name).unlink(missing_ok=True)
            os.link(store / name, place / name)


def one_corruption(saved: Saved, seed: int, place: Path) -> int:
    """Corrupt the store at ``place``; returns how many snapshots that has cost."""
    rng = random.Random(seed)
    if rng.random() < 0.1:
        shutil.rmtree(place / ".archiver" / "db", ignore_errors=True)
    what, touched = corrupt(rng, place)
    text, refs = f"{seed}: {what}", saved.concerned(touched, rng)
    lost = set()
    try:
        with Store.open(place, read_only=True, clock=Ahead()) as store:
            for ref in refs:
                if not is_whole(store, ref, saved.contents[ref], place.parent / "out", text):
                    lost.add(str(ref))
    except ArchiverError:
        assert look(place, refs, VerifyOptions()) is None, text
        heal(saved, place, refs, set(), text, read_all=True)
        return len(saved.contents)
    repairs = rng.random() < 0.5
    result = look(place, refs, VerifyOptions(set_aside=repairs, write_state=repairs))
    assert result is not None, text
    named = {error.snapshot for error in result.errors}
    absent = {str(ref) for ref in refs if not (place / ref.path / MANIFEST).exists()}
    assert len(absent) == result.unfinished, text
    assert lost <= named | absent, (text, lost, named)
    if repairs:  # what was set aside is told as missing
        again = look(place, refs, VerifyOptions())
        assert again is not None and {error.snapshot for error in again.errors} == named, text
    heal(saved, place, refs, named | absent, text, read_all=not repairs)
    return len(lost)


def heal(saved: Saved, place: Path, refs: list[SnapshotRef], hurt: set[str], text: str, *, read_all: bool) -> None:
    """Have everything back from the copy: all of it restores as it was, and a verification finds nothing. What an
    earlier one has written down is enough to know what is damaged, unless ``read_all``."""
    heal_identity(str(place), dry_run=False)
    with Store.open(place, clock=Ahead()) as store, Store.open(saved.copy, read_only=True) as copy:
        options = HealOptions([OtherStore(store, copy, KEY)], read_all=read_all)
        plan = make_plan(store, refs, KEY, options, ignore)
        result = carry_out(store, plan, KEY, ignore)
    assert not plan.remaining and not result.failed, (text, plan.remaining, result.failed)
    named = {found.snapshot for damage in plan.damages for found in damage.places}
    assert hurt <= named, (text, hurt, named)
    healed = look(place, refs, VerifyOptions())
    assert healed is not None and (healed.error_count, healed.unfinished) == (0, 0), (text, healed)
    with Store.open(place, read_only=True, clock=Ahead()) as store:
        for ref in refs:
            state = store.info(ref).verify_state
            assert state is None or state["state"] == "ok", (text, ref)
            assert is_whole(store, ref, saved.contents[ref], place.parent / "out", text), (text, ref)


def many_corruptions(saved: Saved, seeds: range, work: Path) -> None:
    place, sound = work / "store", files_in(saved.store)
    shutil.copytree(saved.store, place, copy_function=os.link, ignore=shutil.ignore_patterns("db"))
    hurt = 0
    for seed in seeds:
        hurt += one_corruption(saved, seed, place) > 0
        assert not list(place.glob(".chunks/*/*.bad")), seed
        mend(place, saved.store, sound)
    assert hurt > len(seeds) // 2  # most of them are met by a restore
    print(f"{len(seeds)} corruptions, {hurt} of them cost a snapshot or more, all of these were found and healed")


def test_corruptions(saved: Saved, tmp_path: Path) -> None:
    many_corruptions(saved, range(120), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(40))
def test_ten_thousand_corruptions(saved: Saved, tmp_path: Path, part: int) -> None:
    many_corruptions(saved, range(250 * part, 250 * (part + 1)), tmp_path)


def test_nothing_is_found_in_a_sound_store(saved: Saved, tmp_path: Path) -> None:
    with Store.open(saved.store, read_only=True, clock=Ahead()) as store:
        for ref, wanted in saved.contents.items():
            assert is_whole(store, ref, wanted, tmp_path / "out", "")
        assert verify(store, every_snapshot(store), KEY, ignore).error_count == 0
