"""The smallest trees of each shape, saved again and again: what is copied from the run before is as if made anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.source.walk import WalkOptions
from formats.crypt import CryptConfig
from formats.patterns import parse_exclude_option
from tests.random_trees import noise
from tests.stores import KEY, damage, make_store, restored_differences, save

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
