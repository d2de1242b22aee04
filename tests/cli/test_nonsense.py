"""Whatever a user types: a sentence, a stable code and the right exit code, never a traceback, nothing written."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ask, call
from tests.cli.stores import SNAPSHOT
from tests.golden_store import write_key
from tests.mounts import read_only_view

COMMANDS: dict[str, tuple[str, ...]] = {
    "backup": ("backup", "{source}"),
    "snapshots": ("snapshots",),
    "groups": ("groups",),
    "files": ("files", "latest"),
    "ls": ("ls", "latest"),
    "cat": ("cat", "latest", "/file"),
    "restore": ("restore", "latest", "{target}"),
    "forget": ("forget", "latest"),
    "protect": ("protect", "latest"),
    "note": ("note", "latest", "text"),
    "owner": ("owner", "host/tester", "joe@pbs"),
    "prune": ("prune", "--keep-last", "1"),
    "namespaces": ("ns", "list"),
    "verify": ("verify",),
    "status": ("status",),
    "check": ("db", "check"),
    "rebuild": ("db", "rebuild"),
    "stats": ("db", "stats"),
}
SNAPSHOTS = ("files", "ls", "cat", "restore", "verify", "snapshots", "forget", "protect", "note")
TEXTS = (
    "",
    " ",
    ".",
    "..",
    "/",
    "//",
    "-",
    "../../etc",
    "host",
    "host/",
    "/host",
    "host/..",
    "host/../..",
    "host/a/b/c/d",
    "host/tester/",
    "host/tester/latest",
    "host/tester/2023-11-14T22:13:20",
    "host/tester/2023-02-30T22:13:20Z",
    "host/tester/9999-99-99T99:99:99Z",
    "host/tester/0000-00-00T00:00:00Z",
    "tape/tester",
    "ns",
    "ns/",
    "ns/a",
    "ns/../host/tester",
    "ns/" * 9 + "host/tester",
    "ns/a/" * 9 + "host/tester",
    "host/\x1b[31m",
    "host/\udcff",
    "host/a\nb",
    "host/" + "x" * 300,
    "x" * 5000,
    "latest/latest",
    "1700000000",
    "ÄÖÜ",
    "$(reboot)",
    "%s%n",
    "\u202e",
)


def fill(command: tuple[str, ...], source: Path, target: Path) -> tuple[str, ...]:
    return tuple(part.format(source=source, target=target) for part in command)


def checked(*arguments: Any) -> int:
    """The exit code; with --json there is one document, without it the same code."""
    done = call(*arguments, "--json")
    if done.code not in (0, 3, 4, 20) or "error" in json.loads(done.raw):
        assert done.error
    return done.code


def contents_of(place: Path) -> dict[str, int]:
    """Everything in a directory but databases; with times of files."""
    found = [path for path in sorted(place.rglob("*")) if ".archiver/db" not in str(path)]
    return {str(path): 0 if path.is_dir() else path.lstat().st_mtime_ns for path in found}


@pytest.mark.parametrize("command", COMMANDS)
def test_stores_that_are_none(tmp_path: Path, source: Path, command: str) -> None:
    file, empty, fifo, dangling, loop = (tmp_path / name for name in ("file", "empty", "fifo", "dangling", "loop"))
    file.write_bytes(b"x")
    empty.mkdir()
    os.mkfifo(fifo)
    dangling.symlink_to("nowhere")
    loop.symlink_to("loop")
    arguments = fill(COMMANDS[command], source, tmp_path / "target")
    codes = {
        tmp_path / "absent": 13,
        tmp_path / "absent/below": 13,
        dangling: 13,
        file: 10,
        fifo: 10,
        empty: 10,
        file / "below": 13,
        loop: 1,
        tmp_path / ("x" * 300): 1,
        Path("/" + "y/" * 3000): 1,
        Path("/dev/null"): 10,
        Path("/proc"): 10,
    }
    before = contents_of(tmp_path)
    for place, code in codes.items():
        done = call("--store", place, *arguments)
        assert (done.code, done.raw) == (code, b""), place
        assert done.err.startswith("archiver: ")
        if command != "cat":
            assert checked("--store", place, *arguments) == code
    assert call("--store", "", *arguments).code == 2
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize("command", ["backup", "snapshots", "restore", "check"])
@pytest.mark.parametrize(
    ("identity", "code"),
    [
        ({"schema": 2, "uuid": "whatever", "name": 7}, 50),
        ({"schema": 99}, 50),
        ({"schema": 1, "uuid": 5, "name": "x"}, 20),
        ({"schema": 1, "uuid": "no uuid", "name": "x"}, 20),
        ({"schema": "1"}, 20),
        ({"schema": 1e999}, 20),
        ({}, 20),
        ([], 20),
        ("fifo", 20),
        (b"", 20),
        (b"\xff", 20),
        (b"[" * 60000, 20),
        (b"9" * 60000, 20),
        (b" " * 100_000, 20),
    ],
)
def test_identity_of_the_store(
    store: Path, source: Path, tmp_path: Path, command: str, identity: Any, code: int
) -> None:
    path = store / ".archiver/store.json"
    if identity == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes(identity if isinstance(identity, bytes) else json.dumps(identity).encode())
    done = call("--store", store, *fill(COMMANDS[command], source, tmp_path / "target"))
    assert (done.code, done.raw) == (code, b"")


@pytest.mark.parametrize("command", [*SNAPSHOTS, "owner", "prune"])
def test_names_of_snapshots(store: Path, tmp_path: Path, command: str) -> None:
    rest: dict[str, tuple[str, ...]] = {"cat": ("/file",), "restore": (str(tmp_path / "target"),)}
    before = contents_of(tmp_path)
    for text in TEXTS:
        for options in ((), ("--ns", "a/b")):
            if (command, text, options) == ("protect", "host/tester/", ()):
                continue  # it is
            done = call("--store", store, *options, command, "--", text, *rest.get(command, ()))
            if text == "host/tester/" and not options:
                continue  # a slash at the end does no harm
            assert done.code in (2, 10), text
            assert done.raw == b"" and "\x1b" not in done.err and len(done.err) < 12_000
    for path in contents_of(tmp_path).keys() - before.keys():
        assert path.startswith(str(tmp_path / "target"))


@pytest.mark.parametrize("command", COMMANDS)
def test_namespaces(store: Path, source: Path, tmp_path: Path, command: str) -> None:
    arguments = fill(COMMANDS[command], source, tmp_path / "target")
    before = contents_of(tmp_path)
    uses_it = command not in ("status", "check", "rebuild", "stats")
    for text in (
        "..",
        "../..",
        "a/..",
        "a//b",
        ".",
        "a/.hidden",
        "x" * 33,
        "a/" * 8 + "b",
        "\udcff",
        "a b",
        "\x1b",
        "ä",
    ):
        done = call("--store", store, "--ns", text, *arguments)
        assert done.code == (2 if uses_it else 0), text
        assert "\x1b" not in done.err
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize(
    "options",
    [
        ("--id", ""),
        ("--id", "a/b"),
        ("--id", ".."),
        ("--id", "-x"),
        ("--id", "\udcff"),
        ("--id", "x" * 256),
        ("--type", "tape"),
        ("--type", ""),
        ("--time", ""),
        ("--time", "0"),
        ("--time", "-1"),
        ("--time", "now"),
        ("--time", "²"),
        ("--time", "9" * 30),
        ("--time", "9" * 5000),
        ("--time", "253402300800"),
        ("--time", "2023-02-30T00:00:00Z"),
        ("--time", "2023-01-01"),
        ("--time", "1e9"),
        ("--time", " 5"),
        ("--mode", "fast"),
        ("--crypt", "rot13"),
        ("--crypt", "encrypt"),
        ("--chunk-size", "0"),
        ("--chunk-size", "65"),
        ("--chunk-size", "-64"),
        ("--chunk-size", "9" * 5000),
        ("--owner", ""),
        ("--owner", "root"),
        ("--owner", "a b@pam"),
        ("--owner", "root@pam\nx"),
        ("--owner", "ro\x1bot@pam"),
        ("--owner", "\udcff@pam"),
        ("--owner", "x" * 70 + "@pam"),
        ("--note", "\udcff"),
        ("--note", "\ud800"),
        ("--exclude", ""),
        ("--exclude", "["),
        ("--include-dev", "/absent"),
        ("--include-dev", ""),
        ("--include-dev", "/", "--all-file-systems"),
        ("--keyfile", ""),
        ("--nonsense",),
        ("--id",),
    ],
)
def test_options_of_backup(store: Path, source: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    before = contents_of(tmp_path)
    done = call("--store", store, "backup", source, *options)
    assert done.code == 2 and done.raw == b"" and "\x1b" not in done.err
    assert done.err.count("\n") <= 3
    assert checked("--store", store, "backup", source, *options) == 2
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize(
    "specs",
    [
        [],
        [""],
        ["{tmp}/absent"],
        ["{tmp}/file"],
        ["{tmp}/fifo"],
        ["x.pxar:"],
        ["x.pxar:{tmp}/absent"],
        ["x.pxar:{tmp}/file"],
        [".pxar:{tmp}"],
        ["a b.pxar:{tmp}"],
        ["x.mpxar:{tmp}"],
        ["x.didx:{tmp}"],
        ["x:{tmp}"],
        ["../x.pxar:{tmp}"],
        ["x.pxar:{tmp}", "x.pxar:{tmp}/source"],
        ["{tmp}/source", "{tmp}/other/source"],
        ["{tmp}/a.b", "{tmp}/a_b"],
        ["\udcff:{tmp}"],
        ["x" * 5000],
        ["x" * 300 + ".pxar:{tmp}"],
        ["{store}"],
    ],
)
def test_sources(store: Path, source: Path, tmp_path: Path, specs: list[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    for name in ("other/source", "a.b", "a_b"):
        (tmp_path / name).mkdir(parents=True)
    before = contents_of(tmp_path)
    names = [spec.format(tmp=tmp_path, store=store) for spec in specs]
    done = call("--store", store, "backup", *names)
    assert done.code == 2 and done.raw == b"", done.err
    assert contents_of(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "full", "store", "chunks", "", "below a file", "socket", "loop", "long"])
@pytest.mark.parametrize("archive", [(), ("--archive", "tree"), ("--archive", "")])
def test_targets(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, archive: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "full/mine").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)
    server.bind("socket")
    places: dict[str, str | Path] = {
        "store": store,
        "chunks": store / ".chunks/new",
        "below a file": tmp_path / "file/below",
        "": "",
        "long": tmp_path / ("x" * 300),
    }
    before = contents_of(tmp_path)
    done = call("--store", store, "restore", SNAPSHOT, places.get(kind, tmp_path / kind), *archive)
    server.close()
    if archive == ("--archive", ""):
        assert done.code == 10
    else:
        assert done.code in (1, 2) and done.raw == b""
    assert contents_of(tmp_path) == before


def test_image_is_not_restored_into_the_store(store: Path, source: Path, tmp_path: Path) -> None:
    from tests.golden_store import unpack

    golden = unpack(tmp_path)
    for place in (golden, golden / "host/image", golden / ".chunks/0000"):
        done = call("--store", golden, "restore", "vm/100", place, "--archive", "qemu-server.conf")
        assert done.code == 2 and "in the store itself" in done.err
    assert not (golden / "host/image").exists()


def test_nothing_is_restored_into_the_store_by_another_way(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store / ".chunks")
    with read_only_view(store, tmp_path / "mounted") as mounted:
        for place in (mounted, mounted / "new", mounted / ".chunks/a/b", tmp_path / "link/new"):
            done = call("--store", store, "restore", "latest", place)
            assert done.code == 2 and "in the store itself" in done.err


@pytest.mark.parametrize(
    "path", ["", "/", "//", ".", "..", "/..", "absent", "/file/x", "/link/x", "a" * 5000, "\udcff", "*"]
)
def test_paths_in_archives(store: Path, path: str) -> None:
    listed = call("--store", store, "ls", "latest", path)
    shown = call("--store", store, "cat", "latest", path)
    if path in ("", "/", "//", "."):
        assert (listed.code, shown.code) == (0, 2)
    else:
        assert (listed.code, shown.code) == (10, 10)
    assert shown.raw == b""


@pytest.mark.parametrize(
    "archive", ["", "absent", "tree.img", "tree.pxar.fidx", "..", "\udcff", "index.json", "x" * 5000]
)
def test_archives(store: Path, tmp_path: Path, archive: str) -> None:
    for command in (("ls", "latest"), ("cat", "latest", "/file"), ("restore", "latest", tmp_path / "out")):
        assert call("--store", store, *command, "--archive", archive).code == 10
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["absent", "directory", "fifo", "empty", "text", "huge", "link", "null"])
def test_inspect(tmp_path: Path, kind: str) -> None:
    place = tmp_path / kind
    if kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "huge":
        with place.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "link":
        place.symlink_to("link")
    elif kind == "null":
        place = Path("/dev/zero")
    elif kind != "absent":
        place.write_bytes(b"" if kind == "empty" else b"some text, no format\n" * 10)
    for options in ((), ("--decode", "-"), ("--decode", tmp_path / "out")):
        done = call("debug", "inspect", place, *options)
        assert done.code == (20 if kind in ("empty", "text") else 2), done.err
    if kind != "absent":
        assert call("debug", "inspect", place, "--payload", place).code in (2, 20)
    assert not (tmp_path / "out").exists()


def test_inspect_encrypted_without_and_with_the_wrong_key(store: Path, source: Path, tmp_path: Path) -> None:
    keyfile = write_key(tmp_path / "key.json")
    name = ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "sealed", "--keyfile", keyfile)["snapshot"]
    chunk = ask("debug", "inspect", store / name / "tree.mpxar.didx")["chunks"][0]["digest"]
    path = store / ".chunks" / chunk[:4] / chunk
    assert ask("debug", "inspect", path)["contents"].startswith("encrypted")
    assert ask("debug", "inspect", path, "--keyfile", keyfile)["digest"] == chunk
    assert call("debug", "inspect", path, "--decode", "-").code == 12
    other = write_key(tmp_path / "other.json", bytes(32))
    assert call("debug", "inspect", path, "--decode", tmp_path / "out", "--keyfile", other).code in (12, 20)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("absent",),
        ("\x1b[31m",),
        ("\udcff",),
        ("--absent",),
        ("db",),
        ("db", "absent"),
        ("debug",),
        ("debug", "inspect"),
        ("init", "a", "b"),
        ("snapshots", "a", "b"),
        ("ls",),
        ("cat", "latest"),
        ("restore", "latest"),
        ("verify", "a", "b"),
        ("--store",),
        ("snapshots", "--store"),
        ("snapshots", "-x\x1b"),
    ],
)
def test_usage(arguments: tuple[str, ...]) -> None:
    done = call(*arguments)
    assert done.code == 2 and done.raw == b"" and done.err and "\x1b" not in done.err
    done = call("--json", *arguments)
    if arguments[-1:] != ("--store",):
        assert done.code == 2 and done.error["code"] == "usage"


@pytest.mark.parametrize(
    "arguments", [("--help",), ("-h",), ("--version",), ("backup", "--help"), ("db", "check", "-h")]
)
def test_help(arguments: tuple[str, ...]) -> None:
    done = call(*arguments)
    assert done.code == 0 and done.raw and done.err == ""


@pytest.mark.parametrize("place", ["/proc/archiver", "/dev/null/x", "{file}", "\udcff"])
@pytest.mark.parametrize("command", ["backup", "verify", "status", "snapshots", "stats"])
def test_database_directories_that_cannot_be(
    store: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, command: str
) -> None:
    """Everything works without a database; only what asks for it says that there is none."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARCHIVER_DB_DIR", place.format(file=file))
    done = call("--store", store, *fill(COMMANDS[command], source, tmp_path / "target"))
    assert done.code == (1 if command == "stats" and place != "\udcff" else 0), done.err


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "TMPDIR"])
@pytest.mark.parametrize("value", [None, "", "relative", "/dev/null", "\udcff"])
def test_strange_environment(
    store: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)
    for command in ("backup", "restore", "verify", "stats"):
        arguments = fill(COMMANDS[command], source, tmp_path / f"target-{command}")
        no_database = command == "stats" and (name, value) == ("XDG_CACHE_HOME", "/dev/null")
        assert call("--store", store, *arguments).code == (1 if no_database else 0)


def test_working_directory_that_is_gone(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert call("--store", "x", "snapshots").code == 1
    assert call("init", "x").code == 1
    assert call("--store", store, "snapshots").code == 0


def test_error_of_the_system_names_its_place(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it comes from: a sentence, not the words of Python."""

    def failing(path: object) -> object:
        raise OSError(errno.EIO, "Input/output error", "/place\x1b")

    monkeypatch.setattr(os, "statvfs", failing)
    assert call("--store", store, "snapshots").err == "archiver: /place\\x1b: input/output error\n"


def test_places_for_new_files(store: Path, tmp_path: Path) -> None:
    """Nothing is made in the store, nor anything else than what was asked for."""
    (index,) = store.glob("host/tester/*/*.mpxar.didx")
    before = contents_of(tmp_path)
    inside = tmp_path / "link"
    inside.symlink_to(store)
    for target in ("", store / "x.tar", inside / "new/x.tar", f"{tmp_path}/new/", store):
        for command in (("restore", "latest", target, "--format", "tar"), ("debug", "recover", index, target)):
            done = call("--store", store, *command)
            assert (done.code, done.raw) == (2, b""), command
    inside.unlink()
    deep = str(tmp_path) + "/d" * 1500
    assert call("--store", store, "restore", "latest", f"{deep}/{'x' * 300}", "--format", "tar").code == 1
    assert call("--store", store, "restore", "latest", "/y" * 3000, "--format", "tar").code == 1
    ask("--store", store, "restore", "latest", f"{deep}/x.tar", "--format", "tar")
    assert os.path.getsize(f"{deep}/x.tar")
    subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)
    assert contents_of(tmp_path) == before


def test_a_device_that_is_not_there_becomes_no_file(store: Path, tmp_path: Path) -> None:
    before = contents_of(tmp_path)
    codes = {(str(tmp_path / "sdx"),): 13, ("/dev/null",): 2, (str(tmp_path),): 2, ("/dev/null", "--format", "tar"): 2}
    for arguments, code in codes.items():
        done = call("--store", store, "restore", "latest", *arguments, "--to-device")
        assert (done.code, done.raw) == (code, b"") and "device" in done.err
    assert contents_of(tmp_path) == before


def test_heal_from_nowhere(store: Path, tmp_path: Path) -> None:
    assert call("--store", store, "heal", "--from", "").code == 2
    assert call("--store", store, "heal", "--from", tmp_path / "absent").code == 13
    assert call("--store", store, "heal", "--from", tmp_path).code == 10
