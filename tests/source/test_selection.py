from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.source.problem import Problem
from archiver.source.selection import CACHE_SIGNATURE, CACHE_TAG, EXCLUDE_FILE, LARGEST_EXCLUDE_FILE, Selection
from archiver.source.walk import Walk, WalkOptions
from formats.patterns import parse_exclude_option
from tests.source.sandbox import IS_ROOT, as_ordinary_user, world_readable_directory
from tests.source.visiting import descriptors, found, paths_of, walked


def excluding(*patterns: bytes, lost_and_found: bool = False, caches: bool = False) -> WalkOptions:
    return WalkOptions(
        excludes=[parse_exclude_option(pattern) for pattern in patterns],
        skip_lost_and_found=lost_and_found,
        exclude_caches=caches,
    )


def make(root: Path, *paths: str | bytes) -> None:
    """Empty files, and directories for the paths that end in a slash."""
    for path in paths:
        name = os.fsencode(root) + b"/" + os.fsencode(path)
        os.makedirs(os.path.dirname(name), exist_ok=True)
        if not name.endswith(b"/"):
            os.close(os.open(name, os.O_CREAT))


def exclude_file(directory: Path, *lines: bytes) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ".pxarexclude").write_bytes(b"".join(line + b"\n" for line in lines))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root"
    directory.mkdir()
    return directory


def kept(root: Path, options: WalkOptions | None = None) -> list[bytes]:
    """The paths of a walk without problems, without the exclude files themselves."""
    return [path for path in paths_of(root, options) if not path.endswith(b"/" + EXCLUDE_FILE)]


# Which pattern decides.


def test_nothing_is_left_out_by_default(root: Path) -> None:
    make(root, "lost+found/x", ".hidden", "a~", "core", ".git/x", "CACHEDIR.TAG")
    assert paths_of(root) == found(root)


def test_last_option_that_matches_decides(root: Path) -> None:
    make(root, "a.tmp", "b.tmp", "d/a.tmp", "d/c")
    assert kept(root, excluding(b"*.tmp", b"!a.tmp")) == [b"/a.tmp", b"/d", b"/d/a.tmp", b"/d/c"]
    assert kept(root, excluding(b"!a.tmp", b"*.tmp")) == [b"/d", b"/d/c"]
    assert kept(root, excluding(b"*.tmp", b"!a.tmp", b"/d/*.tmp")) == [b"/a.tmp", b"/d", b"/d/c"]


def test_exclude_files_decide_after_options(root: Path) -> None:
    make(root, "a.tmp", "b.tmp", "x", "d/a.tmp", "d/b.tmp", "d/x")
    exclude_file(root / "d", b"!a.tmp", b"x")
    assert kept(root, excluding(b"*.tmp", b"!x")) == [b"/d", b"/d/a.tmp", b"/x"]


def test_deeper_exclude_files_decide_after_outer_ones(root: Path) -> None:
    make(root, "a", "b", "s/a", "s/b", "s/t/a", "s/t/b", "u/a", "u/b")
    exclude_file(root, b"a")
    exclude_file(root / "s", b"!a", b"b")
    exclude_file(root / "s/t", b"a")
    assert kept(root) == [b"/b", b"/s", b"/s/a", b"/s/t", b"/u", b"/u/b"]


def test_patterns_of_a_directory_end_with_it(root: Path) -> None:
    make(root, "a/x", "a/b/x", "a/c/x", "b/x", "x")
    exclude_file(root / "a/b", b"x")
    assert kept(root) == [b"/a", b"/a/b", b"/a/c", b"/a/c/x", b"/a/x", b"/b", b"/b/x", b"/x"]


def test_anchored_lines_belong_to_their_directory(root: Path) -> None:
    make(root, "x", "d/x", "d/e/x", "d/d/x", "y/x")
    exclude_file(root / "d", b"/x", b"/e/x")
    assert kept(root) == [b"/d", b"/d/d", b"/d/d/x", b"/d/e", b"/x", b"/y", b"/y/x"]
    exclude_file(root, b"/x", b"!/d/x")  # of no use: the deeper file comes later
    assert kept(root) == [b"/d", b"/d/d", b"/d/d/x", b"/d/e", b"/y", b"/y/x"]


def test_nothing_below_an_excluded_directory_comes_back(root: Path) -> None:
    make(root, "dir/keep", "dir/other", "dir/sub/keep")
    assert kept(root, excluding(b"dir", b"!dir/keep", b"!keep")) == []
    exclude_file(root / "dir", b"!keep", b"!/")
    assert kept(root, excluding(b"dir")) == []  # it is not even read
    (root / "dir/.pxarexclude").unlink()
    assert kept(root, excluding(b"dir/*", b"!dir/keep")) == [b"/dir", b"/dir/keep"]
    assert kept(root, excluding(b"dir/**", b"!dir/sub", b"!dir/sub/keep")) == [b"/dir", b"/dir/sub", b"/dir/sub/keep"]


def test_an_excluded_directory_is_not_opened() -> None:
    with world_readable_directory() as place:
        make(place, "root/closed/x", "root/open/x")
        (place / "root/closed").chmod(0)
        (place / "root/open").chmod(0o755)
        paths, problems = as_ordinary_user(lambda: walked(place / "root", excluding(b"closed/")))
        assert (paths, problems) == ([b"/open", b"/open/x"], [])


def test_directories_only(root: Path) -> None:
    make(root, "a/", "d/a", "e/a/x")
    (root / "f").mkdir()
    (root / "f/a").symlink_to("../e")
    assert kept(root, excluding(b"a/")) == [b"/d", b"/d/a", b"/e", b"/f", b"/f/a"]


def test_odd_names(root: Path) -> None:
    names = [b"\xff\xfe", b"new\nline", b"n" * 255, b"sp ace ", b"st*r", b"[x]", b"back\\slash", b"!bang", b"#hash"]
    make(root, *names, *(b"d/" + name for name in names))
    everything = [b"/d", *(b"/d/" + name for name in sorted(names))]
    everything = sorted([*everything, *(b"/" + name for name in names)], key=lambda path: path.split(b"/"))
    assert kept(root) == everything
    for option, name in [
        (b"\xff*", b"\xff\xfe"),
        (b"new\nline", b"new\nline"),
        (b"n" * 255, b"n" * 255),
        (b"*ace ", b"sp ace "),
        (b"st\\*r", b"st*r"),
        (b"\\[x]", b"[x]"),
        (b"back\\\\slash", b"back\\slash"),
        (b"\\!bang", b"!bang"),
        (b"#hash", b"#hash"),
    ]:
        assert kept(root, excluding(option)) == [path for path in everything if not path.endswith(b"/" + name)], option
        assert kept(root, excluding(b"/d/" + option)) == [path for path in everything if path != b"/d/" + name], option


@pytest.mark.parametrize("name", [b"a*b", b"[x]", b"q?", b"back\\slash", b"!n", b"**", b"\xff", b"new\nline", b" sp "])
def test_exclude_file_in_a_directory_with_an_odd_name(root: Path, name: bytes) -> None:
    make(root, name + b"/x", name + b"/y", b"aXb/x", b"x/x")
    exclude_file(Path(os.fsdecode(os.fsencode(root) + b"/" + name)), b"/x")
    gone = b"/" + name + b"/x"
    assert paths_of(root) == [path for path in found(root) if path != gone]


def test_patterns_reach_the_prelude(root: Path) -> None:
    exclude_file(root, b"from-the-file")
    with Walk(os.fsencode(root), excluding(b"*.o", b"!x/", lost_and_found=True), lambda problem: None) as walk:
        walk.open_root()
        assert [pattern.line() for pattern in walk.prelude_patterns] == [b"*.o\n", b"!x/\n", b"lost+found\n"]


# The exclude file itself.


def test_exclude_file_is_archived_and_may_exclude_itself(root: Path) -> None:
    make(root, "a", "b")
    exclude_file(root, b"a")
    assert paths_of(root) == [b"/.pxarexclude", b"/b"]
    exclude_file(root, b"a", b".pxarexclude")
    assert paths_of(root) == [b"/b"]
    exclude_file(root, b"a")
    assert paths_of(root, excluding(b".pxarexclude")) == [b"/b"]


def test_content_of_an_exclude_file(root: Path) -> None:
    make(root, "a", "b", "c", "# d", "e f", "g")
    (root / ".pxarexclude").write_bytes(b"\n\r\n# comment\n  a \t\r\n#b\n  # c\n\n\\# d\ne f\ng")
    assert kept(root) == [b"/b", b"/c"]


def test_bad_lines_are_reported_and_the_others_count(root: Path) -> None:
    make(root, "sub/a", "sub/b", "sub/[c")
    exclude_file(root / "sub", b"a", b"[c", b"nul\0", b"\xff\xfe[", b"b\\", b"!", b"b")
    before = descriptors()
    paths, problems = walked(root)
    assert paths == [b"/sub", b"/sub/.pxarexclude", b"/sub/[c"]
    assert [(problem.path, problem.kind) for problem in problems] == [(b"/sub/.pxarexclude", "pattern")] * 5
    assert [problem.reason.split(" has no effect: ")[0] for problem in problems] == [f"line {n}" for n in range(2, 7)]
    assert descriptors() == before


def test_largest_exclude_file(root: Path) -> None:
    make(root, "a", "b")
    line = b"a\n"
    filler = b"#" * (LARGEST_EXCLUDE_FILE - len(line) - 1) + b"\n"
    (root / ".pxarexclude").write_bytes(filler + line)
    assert kept(root) == [b"/b"]
    (root / ".pxarexclude").write_bytes(filler + line + b"\n")
    paths, problems = walked(root)
    assert paths == [b"/.pxarexclude", b"/a", b"/b"]  # nothing of it counts, not even the start
    (problem,) = problems
    assert (problem.path, problem.kind) == (b"/.pxarexclude", "pattern")
    assert "larger than" in problem.reason


def test_exclude_file_without_end(root: Path) -> None:
    make(root, "a")
    with open(root / ".pxarexclude", "wb") as file:
        file.truncate(1 << 40)
    paths, problems = walked(root)
    assert paths == [b"/.pxarexclude", b"/a"]
    assert len(problems) == 1


def as_symlink(path: Path) -> None:
    path.with_name("real").write_bytes(b"a\n")
    path.symlink_to("real")


def as_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("place", [Path.mkdir, os.mkfifo, as_symlink, as_socket])
def test_exclude_file_that_is_no_file(root: Path, place: Callable[[Path], None]) -> None:
    make(root, "a")
    place(root / ".pxarexclude")
    paths, problems = walked(root)
    assert {b"/.pxarexclude", b"/a"} <= set(paths)
    assert problems == [Problem(b"/.pxarexclude", "exclude file has no effect: not a regular file", "pattern")]


@pytest.mark.skipif(not IS_ROOT, reason="only root makes device files")
def test_exclude_file_that_is_a_device(root: Path) -> None:
    """/dev/zero never ends."""
    make(root, "a")
    os.mknod(root / ".pxarexclude", 0o20600, os.makedev(1, 5))
    paths, problems = walked(root)
    assert paths == [b"/.pxarexclude", b"/a"]
    assert [problem.reason for problem in problems] == ["exclude file has no effect: not a regular file"]


def test_unreadable_exclude_file() -> None:
    with world_readable_directory() as place:
        make(place, "root/a")
        exclude_file(place / "root", b"a")
        (place / "root").chmod(0o755)
        (place / "root/.pxarexclude").chmod(0)
        paths, problems = as_ordinary_user(lambda: walked(place / "root"))
        assert paths == [b"/.pxarexclude", b"/a"]
        reason = "exclude file has no effect: permission denied"
        assert problems == [Problem(b"/.pxarexclude", reason, "pattern")]


def test_exclude_file_that_vanished(root: Path) -> None:
    """Listed, and gone when it is opened."""
    make(root, "a")
    fd = os.open(root, os.O_RDONLY)
    try:
        selection = Selection.of([], skip_lost_and_found=False, exclude_caches=False)
        names, patterns = selection.choose(
            fd, [EXCLUDE_FILE, b"a"], selection.start(), lambda: b"/", lambda kind, reason: pytest.fail(reason)
        )
    finally:
        os.close(fd)
    assert names == [EXCLUDE_FILE, b"a"]
    assert not patterns


def test_many_levels_of_exclude_files(root: Path) -> None:
    """Each takes back what the one above it says."""
    place = root
    for level in range(100):
        exclude_file(place, b"x" if level % 2 else b"!x", b"other")
        make(place, "x", "other")
        place /= "d"
    place.mkdir()
    paths = kept(root)
    assert sorted(path.count(b"/") for path in paths if path.endswith(b"/x")) == list(range(1, 101, 2))
    assert not [path for path in paths if path.endswith(b"/other")]


# Caches.

TAG = CACHE_SIGNATURE + b"\n# This file is a cache directory tag.\n"


def cache(root: Path, tag: bytes = TAG) -> Path:
    make(root, "cache/a", "cache/sub/b", "other/c")
    (root / "cache/CACHEDIR.TAG").write_bytes(tag)
    return root / "cache"


WITHOUT_CACHE = [b"/cache", b"/cache/CACHEDIR.TAG", b"/other", b"/other/c"]


def test_caches_are_left_out_when_asked_for(root: Path) -> None:
    cache(root)
    assert paths_of(root) == found(root)
    assert paths_of(root, excluding(caches=True)) == WITHOUT_CACHE
    assert paths_of(root, excluding(b"CACHE*", caches=True)) == [b"/cache", b"/other", b"/other/c"]
    assert paths_of(root / "cache", excluding(caches=True)) == [b"/CACHEDIR.TAG"]


@pytest.mark.parametrize("tag", [CACHE_SIGNATURE, TAG, CACHE_SIGNATURE + b"55", CACHE_SIGNATURE + bytes(1 << 20)])
def test_valid_tags(root: Path, tag: bytes) -> None:
    cache(root, tag)
    assert paths_of(root, excluding(caches=True)) == WITHOUT_CACHE


@pytest.mark.parametrize(
    "tag", [b"", CACHE_SIGNATURE[:-1], CACHE_SIGNATURE.lower(), b"\n" + TAG, b"\xef\xbb\xbf" + TAG, bytes(43)]
)
def test_invalid_tags(root: Path, tag: bytes) -> None:
    cache(root, tag)
    assert paths_of(root, excluding(caches=True)) == found(root)


def test_tag_that_is_no_file(root: Path) -> None:
    tag = cache(root) / "CACHEDIR.TAG"
    (root / "real").write_bytes(TAG)
    for place in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to(root / "real")):
        tag.unlink()
        place(tag)
        assert paths_of(root, excluding(caches=True)) == found(root)
        if tag.is_dir():
            tag.rmdir()
            tag.touch()


def test_unreadable_tag() -> None:
    with world_readable_directory() as place:
        tag = cache(place / "root") / "CACHEDIR.TAG"
        for directory in (place / "root", place / "root/cache", place / "root/cache/sub", place / "root/other"):
            directory.chmod(0o755)
        tag.chmod(0)
        paths, problems = as_ordinary_user(lambda: walked(place / "root", excluding(caches=True)))
        assert (paths, problems) == (found(place / "root"), [])


# lost+found


def test_lost_and_found(root: Path) -> None:
    make(root, "lost+found/x", "d/lost+found/y", "d/lost", "e/lost+found")
    skipping = excluding(lost_and_found=True)
    assert kept(root, skipping) == [b"/d", b"/d/lost", b"/e"]
    exclude_file(root / "d", b"!lost+found")
    assert kept(root, skipping) == [b"/d", b"/d/lost", b"/d/lost+found", b"/d/lost+found/y", b"/e"]
    assert kept(root, excluding(b"!lost+found", lost_and_found=True)) == kept(root, skipping)  # it comes after options


# Against git, whose rules are the same for patterns of one component, anchored ones and directories.


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_equal_to_git(root: Path) -> None:
    rng = random.Random(3)
    directories = ["", "a", "b", "a/a", "a/b", "b/ab", "a/b/a", "a/b/a/b"]
    make(root, *(f"{directory}/{name}" for directory in directories for name in ("ba", "x.o", "bb", "aa.o")))
    subprocess.run(["git", "init", "-q", root], check=True)
    shutil.move(root / ".git", root.parent / "git")
    git = ["git", "--git-dir", str(root.parent / "git"), "--work-tree", str(root)]
    special = (b".gitignore", b".pxarexclude")

    def line() -> bytes:
        body = b"".join(rng.choices([b"a", b"b", b"*", b"?", b"[ab]", b"[!a]", b"*.o"], k=rng.randint(1, 3)))
        form = rng.choice([b"%s", b"%s", b"/%s", b"**/%s", b"/**/%s", b"/%s/**", b"/*/%s"])
        return rng.choice([b"", b"", b"!"]) + form % body + rng.choice([b"", b"", b"/"])

    left_out, came_back = 0, 0
    for _ in range(40):
        for directory in directories:
            for name in special:
                (root / directory / name.decode()).unlink(missing_ok=True)
        options = [line() for _ in range(rng.randint(0, 2))]
        (root.parent / "git/info/exclude").write_bytes(b"\n".join(options) + b"\n")
        for directory in rng.sample(directories, rng.randint(0, 4)):
            lines = b"\n".join(line() for _ in range(rng.randint(1, 3))) + b"\n"
            for name in special:
                (root / directory / name.decode()).write_bytes(lines)
        every = [path for path in found(root) if path.rpartition(b"/")[2] not in special]
        answer = subprocess.run(
            [*git, "check-ignore", "--no-index", "-z", "--stdin"],
            cwd=root, input=b"".join(path[1:] + b"\0" for path in every), stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        ignored = {b"/" + path for path in answer.stdout.split(b"\0")[:-1]}
        chosen = [path for path in paths_of(root, excluding(*options)) if path.rpartition(b"/")[2] not in special]
        assert chosen == [path for path in every if path not in ignored], options
        left_out += len(ignored)
        came_back += len(chosen)
    assert left_out > 300 and came_back > 300


def test_tag_and_signature_names() -> None:
    """As the cache directory tagging specification has them."""
    assert CACHE_TAG == b"CACHEDIR.TAG"
    assert CACHE_SIGNATURE == b"Signature: 8a477f597d28d172789f06886806bc55" and len(CACHE_SIGNATURE) == 43
