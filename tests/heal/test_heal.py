"""Healing from a copy: what is looked for, what is taken and what is not, and what is right afterwards."""

from __future__ import annotations

import os
import random
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from archiver.browse.snapshot import Snapshot
from archiver.browse.verify import VerifyOptions, verify
from archiver.core.disk import no_space
from archiver.core.locks import DirectoryLock, lock_range
from archiver.errors import Locked, NoSpace, UsageError
from archiver.heal import find
from archiver.heal.candidates import OtherStore
from archiver.heal.run import carry_out
from archiver.store.chunks import ChunkStore, Inserted
from archiver.store.layout import MANIFEST, SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.golden_store import KEY as GOLDEN_KEY
from tests.golden_store import unpack
from tests.heal.healing import checked, chunks_of, copy_of, flip, heal, planned, states
from tests.random_trees import build_plain, mutate
from tests.stores import KEY, Heard, chunk_files, damage, listing, make_store, restored_differences, save
from tests.sync.pair import Pair

START = 1_700_000_000


class Lab:
    """A store with snapshots of a tree, and a copy of it."""

    def __init__(self, place: Path, crypt: CryptConfig | None = None, snapshots: int = 2) -> None:
        self.path, self.tree, self.crypt = make_store(place / "store"), place / "tree", crypt
        build_plain(self.tree, 1, files=20, max_size=90_000)
        self.refs: list[SnapshotRef] = []
        for number in range(snapshots):
            if number:
                mutate(self.tree, number, 3)
            self.refs.append(save(self.path, self.tree, time=START + number, crypt=crypt).snapshot)
        self.copy = copy_of(self.path, place / "copy")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def files(path: Path) -> dict[str, bytes]:
    """Of chunks and snapshots, by their paths in the store."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and ".archiver" not in file.parts and file.name not in (".lock", ".gc-status")
    }


def test_nothing_is_lost(lab: Lab) -> None:
    before = listing(lab.path / ".chunks")
    plan, result = heal(lab.path, copies=[lab.copy], live=[lab.tree])
    assert plan.damages == [] and not result.states and len(plan.subjects) == 2
    assert listing(lab.path / ".chunks") == before


@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("with_key", [True, False])
def test_after_a_verification(tmp_path: Path, crypt: CryptConfig | None, with_key: bool) -> None:
    """What it found is healed, byte for byte and without the key too; then it finds nothing, and the state is good."""
    lab = Lab(tmp_path, crypt)
    rng = random.Random(1)
    key = crypt if with_key else None
    before = files(lab.path)
    for file in rng.sample(chunk_files(lab.path), 3):
        flip(file, rng)
    gone = rng.choice(chunk_files(lab.path))
    gone.unlink()
    assert checked(lab.path, key, repairs=True).error_count >= 3
    assert set(states(lab.path).values()) == {"failed"} and list(lab.path.glob(".chunks/*/*.bad"))
    plan, result = heal(lab.path, copies=[lab.copy], crypt=key)
    assert not plan.remaining and not result.failed
    assert {damage.remedy for damage in plan.damages} == {f"the store {lab.copy}"}
    assert result.removed_bad == len(plan.damages) - (gone.name in {damage.name for damage in plan.damages})
    assert set(states(lab.path).values()) == {"ok"} == set(result.states.values())
    after = files(lab.path)
    assert {name for name, data in after.items() if before[name] != data} == {f"{r}/{MANIFEST}" for r in lab.refs}
    assert after.keys() == before.keys()
    assert damage(lab.path, crypt) == []
    assert restored_differences(lab.path, lab.refs[-1], lab.tree, tmp_path / "out", crypt) == []
    assert heal(lab.path, copies=[lab.copy], crypt=key)[0].damages == []


def test_what_is_told(lab: Lab) -> None:
    """Each chunk once, with all places and the bytes of the files in them."""
    chunk = chunks_of(lab.path, lab.refs[0], ".ppxar.didx")[1]
    chunk.unlink()
    plan, _ = heal(lab.path)
    (found,) = plan.remaining
    assert (found.kind, found.name, found.reason, found.remedy) == ("chunk", chunk.name, "is missing", None)
    assert found.place_count == len(found.places)
    with Store.open(lab.path) as store:
        for place in found.places:
            snapshot = Snapshot(store, store.find(place.snapshot))
            tree = snapshot.tree(snapshot.archive(None))
            index = tree.content.index
            number = index.find(place.start)
            assert (index.start(number), index.end(number)) == (place.start, place.end)
            assert index.digest(number).hex() == chunk.name
            entries = [event for event in tree.decoder() if getattr(event, "kind", "") == "file"]
            ranges = [(event.content_offset, event.content_offset + event.size) for event in entries]  # type: ignore[union-attr]
            hit = [(a, b) for a, b in ranges if a - 16 < place.end and place.start < b]
            assert [(file.start, file.end) for file in place.files] == [
                (max(place.start - a, 0), max(min(place.end, b) - a, 0)) for a, b in hit
            ]
    assert states(lab.path)[str(lab.refs[0])] == "failed"


def test_without_a_database_and_without_a_verification(lab: Lab) -> None:
    """Missing files are seen; what is rotten is not before it is read."""
    one, other = chunk_files(lab.path)[:2]
    one.unlink()
    flip(other, random.Random(1))
    shutil.rmtree(lab.path / ".archiver/db", ignore_errors=True)
    plan, _ = heal(lab.path, copies=[lab.copy])
    assert [damage.name for damage in plan.damages] == [one.name] and not plan.remaining
    plan, _ = heal(lab.path, copies=[lab.copy], read_all=True)
    assert [damage.name for damage in plan.damages] == [other.name] and not plan.remaining
    assert damage(lab.path) == []


def test_truncated_chunks_are_seen_at_once(lab: Lab) -> None:
    chunk = chunk_files(lab.path)[0]
    with Store.open(lab.path) as store:
        assert store.database is not None
    chunk.write_bytes(chunk.read_bytes()[:-1])
    plan, _ = heal(lab.path, copies=[lab.copy])
    assert [damage.name for damage in plan.damages] == [chunk.name] and not plan.remaining


def test_dry_run(lab: Lab) -> None:
    """Nothing is written, and what it says is what then happens."""
    for file in chunk_files(lab.path)[:2]:
        file.unlink()
    (lab.path / lab.refs[0].path / MANIFEST).unlink()
    (lab.path / lab.refs[1].path / "tree.ppxar.didx").write_bytes(b"")
    before = {name: rest for name, rest in listing(lab.path).items() if "/.archiver" not in name}
    with ExitStack() as opened:
        store = opened.enter_context(Store.open(lab.path, read_only=True))
        plan = planned(store, opened, copies=[lab.copy])
        with pytest.raises(UsageError):
            carry_out(store, plan, None, Heard())
    assert {name: rest for name, rest in listing(lab.path).items() if "/.archiver" not in name} == before
    again, _ = heal(lab.path, copies=[lab.copy])
    assert [(found.kind, found.name, found.remedy) for found in again.damages] == [
        (found.kind, found.name, found.remedy) for found in plan.damages
    ]
    assert not again.remaining and damage(lab.path) == []


@pytest.mark.parametrize("name", [MANIFEST, "tree.mpxar.didx", "tree.ppxar.didx"])
@pytest.mark.parametrize("way", ["gone", "empty", "rotten", "another snapshot's", "directory"])
def test_files_of_snapshots(lab: Lab, tmp_path: Path, name: str, way: str) -> None:
    file = lab.path / lab.refs[1].path / name
    before = files(lab.path)
    if way == "gone":
        file.unlink()
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "rotten":
        data = file.read_bytes()
        file.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif way == "directory":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes((lab.path / lab.refs[0].path / name).read_bytes())
    plan, result = heal(lab.path, copies=[lab.copy])
    if way == "directory":  # whatever is in it, it is not ours to remove
        assert [found.name for found in plan.remaining] == [name] and len(result.failed) in (1, 2)
        return
    assert [(found.name, found.healed) for found in plan.damages] == [(name, True)]
    assert files(lab.path) == before
    assert restored_differences(lab.path, lab.refs[1], lab.tree, tmp_path / "out") == []


def test_a_snapshot_with_everything_lost(lab: Lab) -> None:
    """The chunks that a lost index names are looked for, too; and a copy in another namespace will do."""
    before = files(lab.path)
    for file in [*(lab.path / lab.refs[1].path).iterdir(), *chunk_files(lab.path)]:
        file.unlink()
    (lab.copy / "ns/deep").mkdir(parents=True)
    (lab.copy / "host").rename(lab.copy / "ns/deep/host")
    plan, _ = heal(lab.path, copies=[lab.copy])
    assert not plan.remaining and {found.kind for found in plan.damages} == {"manifest", "index", "chunk"}
    changed = {name for name, data in files(lab.path).items() if before[name] != data}
    assert changed <= {f"{lab.refs[0]}/{MANIFEST}"}


def test_an_unfinished_snapshot_is_not_published_half(lab: Lab) -> None:
    """Its chunks are not to be had: it stays unfinished. Then they are."""
    (lab.path / lab.refs[1].path / MANIFEST).unlink()
    chunk = chunks_of(lab.copy, lab.refs[1], ".ppxar.didx")[0]
    (lab.path / ".chunks" / chunk.name[:4] / chunk.name).unlink()
    kept = chunk.read_bytes()
    chunk.unlink()
    plan, _ = heal(lab.path, copies=[lab.copy])
    assert {found.kind for found in plan.remaining} == {"manifest", "chunk"}
    assert not (lab.path / lab.refs[1].path / MANIFEST).exists()
    chunk.write_bytes(kept)
    assert not heal(lab.path, copies=[lab.copy])[0].remaining
    assert damage(lab.path) == [] and (lab.path / lab.refs[1].path / MANIFEST).exists()


def test_unfinished_snapshots_nobody_else_has(lab: Lab) -> None:
    shutil.rmtree(lab.copy / "host")
    (lab.path / lab.refs[1].path / MANIFEST).unlink()
    plan, _ = heal(lab.path, copies=[lab.copy])
    assert plan.damages == [] and plan.search.unfinished == 1


def test_a_manifest_of_another_snapshot_with_the_same_name(lab: Lab, tmp_path: Path) -> None:
    other, tree = make_store(tmp_path / "other"), tmp_path / "another tree"
    build_plain(tree, 7, files=5)
    save(other, tree, time=START + 1)
    flip(lab.path / lab.refs[1].path / MANIFEST, random.Random(2))
    heard = Heard()
    before = files(lab.path)
    plan, _ = heal(lab.path, copies=[other], listener=heard)
    assert [(found.kind, found.remedy) for found in plan.remaining] == [("manifest", None)]
    assert any("is not taken" in text for text in heard.notices) and files(lab.path) == before
    assert not heal(lab.path, copies=[other, lab.copy])[0].remaining
    assert damage(lab.path) == []


def test_a_manifest_larger_than_any(lab: Lab) -> None:
    before = files(lab.path)
    with (lab.path / lab.refs[1].path / MANIFEST).open("r+b") as manifest:
        manifest.truncate(200 << 20)
    assert not heal(lab.path, copies=[lab.copy])[0].remaining
    assert files(lab.path) == before


def test_what_was_set_aside_is_good(lab: Lab) -> None:
    """It was the cable. One that is not is left alone until a good chunk is there."""
    one, other = chunk_files(lab.path)[:2]
    data = one.read_bytes()
    one.rename(f"{one}.0.bad")
    other.rename(f"{other}.0.bad")
    flip(Path(f"{other}.0.bad"), random.Random(1))
    plan, result = heal(lab.path)
    assert [(found.name, found.remedy) for found in plan.damages if found.healed] == [
        (one.name, "a copy that was set aside")
    ]
    assert one.read_bytes() == data and result.removed_bad == 1
    assert [path.name for path in lab.path.glob(".chunks/*/*.bad")] == [f"{other.name}.0.bad"]


def test_a_copy_that_is_damaged_too(lab: Lab) -> None:
    """Each chunk comes from where it is good; what is good nowhere stays lost."""
    rng = random.Random(3)
    one, other, third = (file.relative_to(lab.path) for file in chunk_files(lab.path)[:3])
    second = copy_of(lab.copy, lab.copy.with_name("second"))
    for file in (one, other, third):
        (lab.path / file).unlink()
    flip(lab.copy / one, rng)
    (second / other).unlink()
    flip(lab.copy / third, rng)
    flip(second / third, rng)
    plan, _ = heal(lab.path, copies=[lab.copy, second])
    assert {found.name: found.remedy for found in plan.damages} == {
        one.name: f"the store {second}",
        other.name: f"the store {lab.copy}",
        third.name: None,
    }
    assert [found.name for found in plan.remaining] == [third.name]
    assert {error.chunk for error in damage(lab.path)} == {third.name}


def test_encrypted_chunks_that_only_their_sum_tells_apart(tmp_path: Path) -> None:
    """Without the key: the CRC of what the copy has is right, but its database knows that it is another chunk."""
    lab = Lab(tmp_path, KEY, snapshots=1)
    pair_copy = make_store(tmp_path / "synced")
    pair = Pair(lab.path, pair_copy, lab.tree)
    assert not pair.sync().errors
    one, other = (file.relative_to(lab.path) for file in chunk_files(lab.path)[:2])
    (lab.path / one).unlink()
    sound = (pair_copy / one).read_bytes()
    when = (pair_copy / one).stat().st_mtime_ns  # written later, it would be another encryption by another program
    (pair_copy / one).write_bytes((pair_copy / other).read_bytes())
    os.utime(pair_copy / one, ns=(when, when))
    plan, _ = heal(lab.path, copies=[pair_copy])
    assert [found.name for found in plan.remaining] == [one.name]
    (pair_copy / one).write_bytes(sound)
    assert not heal(lab.path, copies=[pair_copy])[0].remaining
    assert damage(lab.path, KEY) == []


def test_the_store_itself_is_no_copy(lab: Lab) -> None:
    with Store.open(lab.path) as store, Store.open(lab.path) as same, pytest.raises(UsageError):
        OtherStore(store, same, None)


def test_a_plain_copy_of_the_directory(lab: Lab, tmp_path: Path) -> None:
    """It says that it is the same store; it is good enough to heal from."""
    shutil.copytree(lab.path, tmp_path / "rsynced")
    for file in chunk_files(lab.path)[:2]:
        file.unlink()
    assert not heal(lab.path, copies=[tmp_path / "rsynced"])[0].remaining
    assert damage(lab.path) == []


def test_snapshots_that_are_being_removed(lab: Lab) -> None:
    chunk = chunks_of(lab.path, lab.refs[0], ".ppxar.didx")[0]
    chunk.unlink()
    with DirectoryLock(str(lab.path / lab.refs[0].path)):
        plan, _ = heal(lab.path, copies=[lab.copy])
    assert plan.search.busy == [str(lab.refs[0])]


def test_not_during_a_collection(lab: Lab) -> None:
    chunk_files(lab.path)[0].unlink()
    with open(lab.path / ".lock", "r+b") as file:
        assert lock_range(file.fileno(), 0, 0, exclusive=True)
        with pytest.raises(Locked):
            heal(lab.path, copies=[lab.copy])
    assert not heal(lab.path, copies=[lab.copy])[0].remaining


def test_states_of_others_stay(lab: Lab) -> None:
    """A healed snapshot that was never verified is not said to be good; one that was found good stays so."""
    with Store.open(lab.path):
        pass
    checked(lab.path, repairs=True)
    assert set(states(lab.path).values()) == {"ok"}
    before = (lab.path / lab.refs[0].path / MANIFEST).read_bytes()
    chunk_files(lab.path)[0].unlink()
    plan, result = heal(lab.path, copies=[lab.copy])
    assert plan.damages and not plan.remaining and result.states == {}
    assert (lab.path / lab.refs[0].path / MANIFEST).read_bytes() == before


def test_failed_snapshots_whose_chunks_came_back_otherwise(lab: Lab) -> None:
    """A backup has stored them again: nothing is lost, and the state is made right."""
    chunk = chunks_of(lab.path, lab.refs[1], ".ppxar.didx")[0]
    flip(chunk, random.Random(5))
    assert checked(lab.path, repairs=True).error_count
    (lab.copy / chunk.relative_to(lab.path)).rename(chunk)
    plan, result = heal(lab.path)
    assert plan.damages == [] and set(result.states.values()) == {"ok"} == set(states(lab.path).values())


def test_what_only_the_key_can_tell(tmp_path: Path) -> None:
    """A verification with the key found damage where CRCs are right, and no sum is known: without the key that is not
    taken back."""
    lab = Lab(tmp_path, KEY, snapshots=1)
    one, other = chunks_of(lab.path, lab.refs[0], ".ppxar.didx")[:2]
    sound = one.read_bytes()
    one.write_bytes(other.read_bytes())
    options = VerifyOptions(write_state=True)
    with Store.open(lab.path) as store:
        assert verify(store, lab.refs, KEY, Heard(), options).error_count == 1
        store.rebuild_database()
    heard = Heard()
    plan, result = heal(lab.path, copies=[lab.copy], listener=heard)
    assert plan.damages == [] and result.states == {} and any("stays failed" in text for text in heard.notices)
    assert states(lab.path) == {str(lab.refs[0]): "failed"}
    plan, result = heal(lab.path, copies=[lab.copy], crypt=KEY)
    assert [found.name for found in plan.damages] == [one.name] and result.states == {str(lab.refs[0]): "ok"}
    assert one.read_bytes() == sound


def test_what_came_back_without_proof(tmp_path: Path) -> None:
    """Without the key, CRCs are believed where nothing better is known: that makes no snapshot good."""
    lab = Lab(tmp_path, KEY, snapshots=1)
    one, other = (chunk.relative_to(lab.path) for chunk in chunks_of(lab.path, lab.refs[0], ".ppxar.didx")[:2])
    flip(lab.path / one, random.Random(5))
    assert checked(lab.path, KEY, repairs=True).error_count == 1
    sound = (lab.copy / one).read_bytes()
    (lab.copy / one).write_bytes((lab.copy / other).read_bytes())
    heard = Heard()
    plan, result = heal(lab.path, copies=[lab.copy], listener=heard)
    assert not plan.remaining and result.states == {} and any("stays failed" in text for text in heard.notices)
    assert states(lab.path) == {str(lab.refs[0]): "failed"}
    (lab.copy / one).write_bytes(sound)
    plan, result = heal(lab.path, copies=[lab.copy], crypt=KEY)
    assert not plan.remaining and result.states == {str(lab.refs[0]): "ok"}
    assert damage(lab.path, KEY) == []


def test_full_disk(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reserve is given up, and what was written by then counts."""
    first, second = chunk_files(lab.path)[:2]
    first.unlink()
    second.unlink()
    insert = ChunkStore.insert
    done: list[str] = []

    def full(self: ChunkStore, digest: bytes, *words: bytes, **options: Any) -> Inserted:
        if done:
            raise no_space("write", "a chunk")
        done.append(digest.hex())
        return insert(self, digest, *words, **options)

    monkeypatch.setattr(ChunkStore, "insert", full)
    with Store.open(lab.path) as store, store.session():
        assert os.path.exists(store.layout.reserve)
    with pytest.raises(NoSpace):
        heal(lab.path, copies=[lab.copy])
    monkeypatch.undo()
    with Store.open(lab.path) as store:
        assert not os.path.exists(store.layout.reserve)
        known = store.database
        assert known is not None and known.recorded_sum(bytes.fromhex(done[0])) is not None
    (other,) = {first.name, second.name} - set(done)
    assert [found.name for found in heal(lab.path, copies=[lab.copy])[0].damages] == [other]


def test_so_much_is_lost_that_it_takes_several_runs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_LOST_AT_MOST", 1)
    for file in chunk_files(lab.path):
        flip(file, random.Random(1))
    assert checked(lab.path, repairs=True).error_count == 20
    healed: list[str] = []
    is_complete = False
    while not is_complete:
        plan, _ = heal(lab.path, copies=[lab.copy])
        is_complete = plan.search.is_complete
        assert plan.damages and not plan.remaining
        assert is_complete or "failed" in states(lab.path).values()
        healed += [found.name for found in plan.damages]
    assert len(healed) == len(set(healed)) == 12 and healed[0] != healed[-1]
    assert damage(lab.path) == [] and set(states(lab.path).values()) == {"ok"}


@pytest.mark.parametrize("with_key", [True, False])
def test_golden(tmp_path: Path, with_key: bool) -> None:
    """A store of the reference implementation: every file of every snapshot and every chunk, in turn and together."""
    path = unpack(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    before, rng = files(path), random.Random(4)
    key = GOLDEN_KEY if with_key else None
    assert checked(path, GOLDEN_KEY).error_count == 0
    names = [name for name in before if name.startswith(".chunks/") or name.endswith(("idx", ".blob"))]
    for chosen in [rng.sample(names, 3) for _ in range(6)] + [names[::2]]:
        chosen = [name for name in chosen if not name.endswith("client.log.blob") and (path / name).stat().st_size]
        for name in chosen:
            if rng.random() < 0.5:
                (path / name).unlink()
            else:
                flip(path / name, rng)
        plan, result = heal(path, copies=[copy], crypt=key, read_all=True)
        assert not plan.remaining and not result.failed
        after = files(path)
        wrong = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        assert all(name.endswith("idx") for name in wrong)  # no checksum covers all of an index file's head
        for name in wrong:
            (path / name).write_bytes(before[name])
        assert checked(path, GOLDEN_KEY).error_count == 0


def test_what_was_set_aside_and_cannot_be_removed(lab: Lab) -> None:
    """The chunk is good again, and so are all others."""
    first, second = chunk_files(lab.path)[:2]
    for chunk in (first, second):
        chunk.unlink()
    first.mkdir()  # a check of the file system has left this
    plan, result = heal(lab.path, copies=[lab.copy])
    assert [damage.healed for damage in plan.damages] == [True, True]
    (failed,) = result.failed
    assert ".0.bad: is a directory" in failed
    assert first.read_bytes() == (lab.copy / first.relative_to(lab.path)).read_bytes()
    assert second.exists()
