"""The smallest trees of each shape, saved again and again: what is copied from the run before is as if made anew."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.source.walk import WalkOptions
from formats.crypt import CryptConfig
from formats.patterns import parse_exclude_option
from tests.compare import differences
from tests.mounts import temporary_file_system
from tests.random_trees import noise
from tests.stores import KEY, bring_back, damage, make_store, restored_differences, save

pytestmark = pytest.mark.in_memory

START = 1_700_000_000


def nothing(root: Path) -> None:
    pass


def one_file(root: Path) -> None:
    (root / "file").write_bytes(noise(1, 5000))


def empty_files(root: Path) -> None:
    for name in ("a", "b", "c"):
        (root / name).touch()


def large_file(root: Path) -> None:
    (root / "large").write_bytes(noise(2, 900_000))


def flat(root: Path) -> None:
    for number in range(40):
        (root / f"file-{number}").write_bytes(noise(number, 500 * number))


def links(root: Path) -> None:
    (root / "first").write_bytes(noise(3, 70_000))
    for name in ("second", "third"):
        os.link(root / "first", root / name)


def links_between_directories(root: Path) -> None:
    for place in ("a", "b", "c"):
        (root / place).mkdir()
        (root / place / "own").write_bytes(noise(4, 3000))
    (root / "a" / "first").write_bytes(noise(5, 70_000))
    os.link(root / "a" / "first", root / "b" / "second")
    os.link(root / "a" / "first", root / "c" / "third")


def no_regular_files(root: Path) -> None:
    (root / "link").symlink_to("nowhere")
    os.mkfifo(root / "fifo")


def empty_directories(root: Path) -> None:
    for place in ("a", "b", "b/c", "b/c/d"):
        (root / place).mkdir()


def nested(root: Path) -> None:
    place = root
    for level in range(6):
        place /= f"level-{level}"
        place.mkdir()
        for name in ("a", "z"):
            (place / name).write_bytes(noise(level, 2000))


def directory_between_files(root: Path) -> None:
    for name in ("a", "c"):
        (root / name).write_bytes(noise(6, 4000))
    (root / "b").mkdir()


def attributes(root: Path) -> None:
    flat(root)
    for path in (root, root / "file-3"):
        os.setxattr(path, "user.name", b"value")


SHAPES = (
    *(nothing, links, links_between_directories, empty_directories, nested, directory_between_files),
    *(one_file, empty_files, large_file, flat, no_regular_files, attributes),
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "encrypted"])
def test_again_and_again(tmp_path: Path, shape: Callable[[Path], None], crypt: CryptConfig | None) -> None:
    """Nothing changes but, from the third run on, the patterns of the run, which are in the archive too."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    shape(source)
    for number, patterns in enumerate(([], [], ["*.tmp"], ["*.tmp", "*.other"], [])):
        walk = WalkOptions(excludes=[parse_exclude_option(text.encode()) for text in patterns])
        saved = save(store, source, time=START + number, mode="metadata", crypt=crypt, walk=walk)
        assert restored_differences(store, saved.snapshot, source, tmp_path / f"out-{number}", crypt) == []
        assert saved.result.files.bytes_read == 0 or number == 0
    assert damage(store, crypt) == []


@pytest.mark.parametrize("files", [["own"], ["own", "z"]])
def test_directories_change_places(tmp_path: Path, files: list[str]) -> None:
    """Each is as it was, in another order."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    for place in ("a", "b"):
        (source / place).mkdir(parents=True)
        for name in files:
            (source / place / name).write_bytes(noise(ord(place), 3000))
    for number, (old, new) in enumerate((("a", "a"), ("a", "c"), ("c", "c"), ("c", "0"))):
        (source / old).rename(source / new)
        saved = save(store, source, time=START + number, mode="metadata")
        assert restored_differences(store, saved.snapshot, source, tmp_path / f"out-{number}") == []


def test_the_first_name_of_a_file_moves(tmp_path: Path) -> None:
    """Directories in which nothing has changed have names of a file that is found by another first name now."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    for place in ("a", "b", "c"):
        (source / place).mkdir(parents=True)
    (source / "a" / "name").write_bytes(noise(5, 70_000))
    for place in ("b", "c"):
        os.link(source / "a" / "name", source / place / "name")
    for number, (old, new) in enumerate((("a", "a"), ("a", "bb"), ("b", "d"), ("bb", "e"), ("c", "0"))):
        (source / old).rename(source / new)
        for again in (0, 1):
            saved = save(store, source, time=START + 2 * number + again, mode="metadata")
            assert restored_differences(store, saved.snapshot, source, tmp_path / f"out-{number}-{again}") == []


def test_the_first_name_of_a_file_is_left_out(tmp_path: Path) -> None:
    """By a pattern of the run, and comes back: nothing in the tree has changed."""
    source, store, without = tmp_path / "source", make_store(tmp_path / "store"), tmp_path / "without"
    source.mkdir()
    links_between_directories(source)
    shutil.copytree(source, without, ignore=shutil.ignore_patterns("a", "third"))
    os.link(without / "b" / "second", without / "c" / "third")
    for place in ("", "b", "c"):
        os.utime(without / place, ns=(0, (source / place).stat().st_mtime_ns))
    for number, patterns in enumerate(([], ["/a"], ["/a"], [], [])):
        walk = WalkOptions(excludes=[parse_exclude_option(text.encode()) for text in patterns])
        saved = save(store, source, time=START + number, mode="metadata", walk=walk)
        wanted = without if patterns else source
        assert restored_differences(store, saved.snapshot, wanted, tmp_path / f"out-{number}") == []


def fill_directory(place: Path, size: int, rng: random.Random) -> None:
    """Give a directory exactly so many names: files, names of one file, directories, links; which ones is chance."""
    names = sorted(os.listdir(place))
    while len(names) > size:
        path = place / names.pop(rng.randrange(len(names)))
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    while len(names) < size:
        path, kind = place / f"{rng.randrange(10**9):09}", rng.random()
        if kind < 0.02:
            path.mkdir()
            (path / "inside").write_bytes(rng.randbytes(100))
        elif kind < 0.04:
            path.symlink_to("nowhere")
        else:
            path.write_bytes(rng.randbytes(rng.choice((0, 10, 200))))
            if kind < 0.06:
                os.link(path, place.parent / rng.choice(("before", "later")) / path.name)
        names.append(path.name)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_directory_grows_and_shrinks(tmp_path: Path, seed: int) -> None:
    """Past the sizes from which on, and below which, its record is in several pieces."""
    source, store, rng = tmp_path / "source", make_store(tmp_path / "store"), random.Random(seed)
    for place in ("before", "large", "later"):
        (source / place).mkdir(parents=True)
    for number, size in enumerate((2048, 2049, 3500, 1025, 1024, 0, 2060)):
        fill_directory(source / "large", size, rng)
        for again in (0, 1):
            saved = save(store, source, time=START + 2 * number + again, mode="metadata")
            assert restored_differences(store, saved.snapshot, source, tmp_path / f"out-{number}-{again}") == []
        shutil.rmtree(tmp_path / f"out-{number}-0")


def test_new_names_between_old_ones(tmp_path: Path) -> None:
    """A chunk is not put in once for each of the few files between two of them: that would make a stream of padding."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    for number in range(0, 3000, 3):
        (source / f"file-{number:04}").write_bytes(noise(number, 300))
    save(store, source, time=START, mode="metadata")
    for number in range(1, 3000, 6):
        (source / f"file-{number:04}").write_bytes(noise(number, 300))
    saved = save(store, source, time=START + 1, mode="metadata")
    assert saved.result.archives[0].counters.padding_bytes < 1500 * 300
    assert restored_differences(store, saved.snapshot, source, tmp_path / "out") == []


def test_several_archives_of_one_source(tmp_path: Path) -> None:
    """In one snapshot: the whole, a part of it, and the whole once more."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    source.mkdir()
    links_between_directories(source)
    places = {"one": source, "part": source / "b", "two": source}
    for number in range(4):
        saved = save(store, places, time=START + number, mode="metadata")
        for name, place in places.items():
            out = tmp_path / f"{name}-{number}"
            bring_back(store, saved.snapshot, out, archives=[name])
            assert differences(place, out) == []
        assert (saved.result.files.bytes_read == 0) == (number in (1, 3))
        if number == 1:
            (source / "b" / "own").write_bytes(noise(9, 3000))


def test_a_mount_comes_and_goes(tmp_path: Path) -> None:
    """Over a directory in which nothing changes, entered or not as the run has it."""
    source, store = tmp_path / "source", make_store(tmp_path / "store")
    for place in ("a", "m", "z"):
        (source / place).mkdir(parents=True)
        (source / place / "file").write_bytes(noise(ord(place), 5000))
    one, all_of_them = WalkOptions(), WalkOptions(all_file_systems=True)
    runs = itertools.count()

    def check(walk: WalkOptions, content: bytes | None) -> None:
        for number in (next(runs), next(runs)):
            saved = save(store, source, time=START + number, mode="metadata", walk=walk)
            out = tmp_path / f"out-{number}"
            bring_back(store, saved.snapshot, out)
            files = {path: path.read_bytes() for path in out.rglob("file")}
            wanted = {out / place / "file": noise(ord(place), 5000) for place in ("a", "z")}
            assert files == wanted | ({} if content is None else {out / "m" / "file": content})

    below, above = noise(ord("m"), 5000), noise(77, 5000)
    check(one, below)
    with temporary_file_system(tmp_path / "mounted", 1 << 20) as mounted:
        (mounted / "file").write_bytes(above)
        subprocess.run(["mount", "--bind", str(mounted), str(source / "m")], check=True)
        try:
            for walk in (one, all_of_them, one, all_of_them):
                check(walk, above if walk.all_file_systems else None)
        finally:
            subprocess.run(["umount", str(source / "m")], check=True)
    check(all_of_them, below)
