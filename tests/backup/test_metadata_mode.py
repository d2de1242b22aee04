"""Metadata mode: what is taken over from the previous archive, what is read, and that every snapshot restores."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from archiver.backup.run import Mode
from archiver.store.layout import GroupRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from tests.golden_store import unpack
from tests.random_trees import build_plain, mutate, noise
from tests.stores import Heard, Saved, bring_back, damage, make_store, restored_differences, save

pytestmark = pytest.mark.in_memory

KEYS = {"a": CryptConfig(bytes(range(32))), "b": CryptConfig(bytes(range(1, 33)))}
START = 1_700_000_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Small files, a file of many chunks, and names of one file."""
    root = tmp_path / "source"
    build_plain(root, 3, 150)
    (root / "large").write_bytes(noise(1, 1 << 20))
    os.link(root / "large", root / "other-name")
    (root / "z").mkdir()
    (root / "z" / "last").write_bytes(noise(2, 200_000))
    os.link(root / "z" / "last", root / "z" / "linked")
    return root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store")


def reused(saved: Saved) -> int:
    return sum(archive.counters.reused_chunks for archive in saved.result.archives)


def test_nothing_changed(store: Path, source: Path, tmp_path: Path) -> None:
    first = save(store, source, time=START, mode="metadata")
    assert first.result.files.unchanged == 0
    again = save(store, source, time=START + 10, mode="metadata")
    files = again.result.files
    assert (files.bytes_read, files.reencoded, files.unchanged) == (0, 0, first.result.files.reencoded)
    assert files.total == first.result.files.total
    counters = again.result.archives[0].counters
    assert counters.reused_bytes >= first.result.files.bytes_read
    assert counters.padding_bytes < counters.reused_bytes / 10
    assert restored_differences(store, again.snapshot, source, tmp_path / "out") == []
    assert damage(store) == []


@pytest.mark.parametrize("seed", range(3))
def test_generations(store: Path, source: Path, tmp_path: Path, seed: int) -> None:
    """Any mode follows any other; each snapshot holds the tree of its moment, and stays what it was."""
    rng = random.Random(seed)
    for generation in range(7):
        mode: Mode = rng.choice(["metadata", "metadata", "metadata", "data", "legacy"])
        saved = save(store, source, time=START + generation, mode=mode)
        assert saved.problems == []
        assert restored_differences(store, saved.snapshot, source, tmp_path / f"out-{generation}") == []
        mutate(source, 10 * seed + generation, 6)
    assert damage(store) == []


def test_only_what_changed_is_read(store: Path, source: Path, tmp_path: Path) -> None:
    save(store, source, time=START, mode="metadata")
    (source / "z" / "last").write_bytes(noise(5, 200_000))  # the same size
    os.chmod(source / "large", 0o600)
    saved = save(store, source, time=START + 10, mode="metadata")
    assert saved.result.files.bytes_read >= 200_000 + (1 << 20)
    assert saved.result.files.unchanged > 0
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []


@pytest.mark.parametrize(
    ("before", "after"),
    [("none", "a"), ("a", "none"), ("a", "b")],
)
def test_nothing_is_taken_over_across_keys(store: Path, source: Path, tmp_path: Path, before: str, after: str) -> None:
    first, second = KEYS.get(before), KEYS.get(after)
    one = save(store, source, time=START, mode="metadata", crypt=first)
    heard = Heard()
    two = save(store, source, time=START + 10, mode="metadata", crypt=second, heard=heard)
    assert reused(two) == 0
    assert any("is saved completely" in notice for notice in heard.notices)
    assert restored_differences(store, one.snapshot, source, tmp_path / "one", first) == []
    assert restored_differences(store, two.snapshot, source, tmp_path / "two", second) == []


def test_encrypted(store: Path, source: Path, tmp_path: Path) -> None:
    save(store, source, time=START, mode="metadata", crypt=KEYS["a"])
    mutate(source, 1, 4)
    saved = save(store, source, time=START + 10, mode="metadata", crypt=KEYS["a"])
    assert reused(saved) > 0
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out", KEYS["a"]) == []


@pytest.mark.parametrize("harm", ["missing", "shorter"])
def test_chunks_that_are_not_sound_are_not_taken_over(store: Path, source: Path, tmp_path: Path, harm: str) -> None:
    save(store, source, time=START, mode="metadata")
    for chunk in sorted((store / ".chunks").glob("*/*"))[::3]:
        if harm == "missing":
            chunk.unlink()
        else:
            os.truncate(chunk, chunk.stat().st_size - 1)
    saved = save(store, source, time=START + 10, mode="metadata")
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []


def test_damaged_metadata_of_the_reference(store: Path, source: Path, tmp_path: Path) -> None:
    """Names that can no longer be read are only files to be read again."""
    first = save(store, source, time=START, mode="metadata")
    index = store / first.snapshot.path / "tree.mpxar.didx"
    digests = index.read_bytes()[4096:]
    for at in range(8, len(digests), 40):
        name = digests[at : at + 32].hex()
        (store / ".chunks" / name[:4] / name).unlink(missing_ok=True)
    saved = save(store, source, time=START + 10, mode="metadata")
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []


def test_failed_verification(store: Path, source: Path) -> None:
    """Without a sound reference everything is read."""
    first = save(store, source, time=START, mode="metadata")
    (store / first.snapshot.path / "tree.ppxar.didx").unlink()
    heard = Heard()
    saved = save(store, source, time=START + 10, mode="metadata", heard=heard)
    assert reused(saved) == 0 and saved.result.files.unchanged == 0
    assert any("is saved completely" in notice for notice in heard.notices)


def test_a_series_of_the_reference_implementation_goes_on(tmp_path: Path) -> None:
    """Golden ``host/alpha``: its last snapshot, restored, is the source of the next one."""
    store = unpack(tmp_path)
    group = GroupRef("", "host", "alpha")
    newest = max(path.name for path in (store / "host/alpha").iterdir() if path.is_dir())
    with Store.open(store) as opened:
        ref = opened.find(f"host/alpha/{newest}")
        name = next(file.filename for file in opened.manifest(ref).files if ".mpxar" in file.filename)
    tree = tmp_path / "tree"
    bring_back(store, ref, tree, archives=[name])
    saved = save(store, {name.split(".")[0]: tree}, group=group, mode="metadata")
    assert reused(saved) > 0 and saved.result.files.unchanged > 0
    assert restored_differences(store, saved.snapshot, tree, tmp_path / "again") == []


def test_dropped_files_are_read_from_where_they_are(store: Path, tmp_path: Path) -> None:
    """Unchanged files whose chunks are not worth keeping, deep in directories that the walk has left."""
    source = tmp_path / "source"
    for number in range(60):
        place = source / f"d{number:02}" / "in" / "side"
        place.mkdir(parents=True)
        for name in range(6):
            (place / f"f{name}").write_bytes(noise(100 * number + name, 9000))
    save(store, source, time=START, mode="metadata")
    for number in range(60):
        if number % 3:
            (source / f"d{number:02}" / "in" / "side" / "f0").unlink()
            for name in range(2, 6):
                (source / f"d{number:02}" / "in" / "side" / f"f{name}").unlink()
    saved = save(store, source, time=START + 10, mode="metadata")
    assert saved.result.files.reencoded > 0
    assert saved.problems == []
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []
