"""Looking inside by command: a day on which a file is needed, the documents, names that are anything, keys."""

from __future__ import annotations

import errno
import os
import shutil
from itertools import product
from pathlib import Path

import pytest

from archiver.backup.run import BackupOptions, Mode, backup
from archiver.backup.specification import ArchiveSpec
from archiver.browse import catalog, files, search
from archiver.browse.history import History, open_histories
from archiver.browse.snapshot import Snapshot
from archiver.cli.context import Context
from archiver.core import linux
from archiver.core.events import ignore
from archiver.errors import KeyProblem, NotFound
from archiver.source import content
from archiver.store.indexes import load_index
from archiver.store.layout import GroupRef, SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig
from formats.manifest import Manifest
from formats.naming import format_time
from tests.cli.command import ask, call
from tests.cli.stores import SNAPSHOT
from tests.golden_store import ENCRYPTED, PLAIN, TREES, unpack, write_key
from tests.stores import KEY, SetClock, save

pytestmark = pytest.mark.in_memory

DAY = 86_400
FIRST = 1_700_000_000
ODD = b"new\nline \x1b[31m \xff"


def nights(store: Path, source: Path) -> list[bytes]:
    """30 nights of a home directory; a report is written in five of them and lost in the 25th. What it was."""
    contents: list[bytes] = []
    (source / "work").mkdir(parents=True)
    (source / "letters").mkdir()
    report = source / "work" / "annual-budget-2023.txt"
    ask("init", store)
    for night in range(30):
        (source / "letters" / f"letter-{night:02}.txt").write_bytes(b"dear %d" % night)
        if night in (0, 4, 9, 17, 21):
            contents.append(b"budget, version %d\n" % len(contents) * (len(contents) + 1))
            report.write_bytes(contents[-1])
        if night == 25:
            report.unlink()
        save(store, source, group=GroupRef("", "host", "laptop"), time=FIRST + night * DAY, mode="metadata")
    return contents


def time_of(night: int) -> str:
    return format_time(FIRST + night * DAY)


def test_a_day_on_which_a_file_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone: find it by half its name, see its versions, and get the one before last next to the last one."""
    store, path = tmp_path / "store", "/work/annual-budget-2023.txt"
    contents = nights(store, tmp_path / "home")
    monkeypatch.setenv("ARCHIVER_STORE", str(store))
    assert call("cat", "latest", path).code == 10
    assert call("find", "*budget*").out == path + "\n"
    assert call("find", "*budget*", "--snapshot", "latest").out == ""
    lines = call("history", path).lines
    assert lines[0] == "host/laptop tree.pxar, 30 snapshots"
    assert [line.split()[0] for line in lines[1:]] == ["4", "5", "8", "4", "4"]
    names = [f"{path}@{time_of(night)}" for night in (3, 8, 16, 20, 24)]
    assert [next(word for word in line.split() if "@" in word) for line in lines[1:]] == names
    home = tmp_path / "home" / "work"
    assert call("restore", "host/laptop", names[-1], home).code == 0
    assert call("restore", "host/laptop", names[-2], home / "annual-budget-2023.before.txt").code == 0
    assert {file.name: file.read_bytes() for file in home.iterdir()} == {
        "annual-budget-2023.txt": contents[-1],
        "annual-budget-2023.before.txt": contents[-2],
    }
    assert call("cat", "host/laptop", names[-2]).raw == contents[-2]


def test_the_same_day_with_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    contents = nights(store, tmp_path / "home")
    monkeypatch.setenv("ARCHIVER_STORE", str(store))
    found = ask("find", "*budget*")["items"]
    assert len(found) == 5 and {item["path"] for item in found} == {"/work/annual-budget-2023.txt"}
    items = ask("history", found[0]["path"], "--group", found[0]["group"])["items"]
    assert [(item["name"], item["first"], item["snapshot"], item["snapshots"], item["size"]) for item in items] == [
        (item["name"], item["first"], item["snapshot"], item["snapshots"], item["size"]) for item in found
    ]
    assert [item["snapshots"] for item in items] == [4, 5, 8, 4, 4]
    assert [item["what"] for item in items] == [[], *[["size", "mtime"]] * 4]
    assert items[0]["first"] == f"host/laptop/{time_of(0)}" and items[-1]["snapshot"] == f"host/laptop/{time_of(24)}"
    for item, data in zip(items, contents, strict=True):
        assert call("cat", item["group"], item["name"]).raw == data
        assert call("cat", item["first"], item["path"]).raw == data
    ask("restore", items[-1]["group"], items[-1]["name"], tmp_path / "home/work/now.txt")
    ask("restore", items[-2]["group"], items[-2]["name"], tmp_path / "home/work/before.txt")
    assert (tmp_path / "home/work/now.txt").read_bytes() == contents[-1]
    assert (tmp_path / "home/work/before.txt").read_bytes() == contents[-2]
    for name in (f"{items[0]['path']}@{time_of(25)}", f"{items[0]['path']}@2001-01-01T00:00:00Z"):
        assert call("cat", "host/laptop", name, "--archive", "tree.pxar").code == 10


ENTRY = {"kind", "mode", "uid", "gid", "mtime", "mtime_nanos"}
VERSION = {"name", "snapshot", "first", "snapshots"}


def test_documents(store: Path, source: Path) -> None:
    """Which members there are."""
    ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "tester", "--time", "1700100000")
    (source / "file").write_bytes(b"other contents")
    (source / "below" / "empty").unlink()
    (source / "new").symlink_to("x")
    ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "tester", "--time", "1700200000")
    where = {"group", "archive", "path"}
    items = {item["path"]: item for item in ask("--store", store, "find", "--type", "f")["items"]}
    assert items.keys() == {"/file", "/below/empty"}
    assert items["/below/empty"].keys() == where | VERSION | ENTRY | {"size"}
    assert items["/below/empty"]["snapshots"] == 2 and items["/below/empty"]["first"] == SNAPSHOT
    (link,) = ask("--store", store, "find", "new")["items"]
    assert link.keys() == where | VERSION | ENTRY | {"target"}
    for item in ask("--store", store, "history", "file")["items"]:
        assert item.keys() == where | VERSION | ENTRY | {"size", "what"}
    done = call("--store", store, "diff", "latest", "--json")
    document = done.document
    assert done.code == 4
    assert document.keys() == {"schema", "before", "after", "items", "summary", "errors"}
    changes = {item["path"]: item for item in document["items"]}
    members = {"archive", "path", "change", "what", "bytes_added", "bytes_removed", "before", "after"}
    assert all(item.keys() == members for item in changes.values())
    assert {path: item["change"] for path, item in changes.items()} == {
        "/": "changed", "/below": "changed", "/below/empty": "removed", "/file": "changed", "/new": "added"
    }  # fmt: skip
    assert changes["/file"]["before"].keys() == changes["/file"]["after"].keys() == ENTRY | {"size"}
    assert changes["/new"]["before"] is None and changes["/below/empty"]["after"] is None
    assert document["summary"] == {"added": 1, "removed": 1, "changed": 3, "bytes_added": 14, "bytes_removed": 14}
    sizes = call("--store", store, "diff", "latest", "--sizes", "--json").document
    assert sizes.keys() == document.keys()
    assert [(item["path"], item["bytes_added"], item["entries"]) for item in sizes["items"]] == [
        ("/", 14, 5), ("/below", 0, 1)
    ]  # fmt: skip
    same = call("--store", store, "diff", SNAPSHOT, "host/tester/2023-11-16T02:00:00Z", "--json")
    assert same.code == 0 and same.document["items"] == []
    assert call("--store", store, "diff", SNAPSHOT).code == 10  # it is the first one


def test_listings(store: Path) -> None:
    listed = call("--store", store, "ls", "latest", "-R").lines
    assert listed == ["below", "below/empty", "file", "link"]
    assert call("--store", store, "ls", "latest", "--tree").lines == ["below", "  empty", "file", "link"]
    sizes = call("--store", store, "ls", "latest", "--sizes").lines
    assert [line.split() for line in sizes] == [["0", "B", "below"], ["14", "B", "file"], ["0", "B", "link"]]
    assert call("--store", store, "ls", "latest", "-0", "-R").raw == b"below\0below/empty\0file\0link\0"
    assert call("--store", store, "ls", "latest", "-0", "-l").code == 2
    items = ask("--store", store, "ls", "latest", "--sizes")["items"]
    assert {item["path"]: item.get("size") for item in items} == {"/below": 0, "/file": 14, "/link": None}
    assert call("--store", store, "ls", "host/tester", f"/below@{SNAPSHOT.rsplit('/', 1)[1]}").lines == ["empty"]


def test_names_are_shown_safely_and_told_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    with open(os.fsencode(source) + b"/" + ODD, "wb") as file:
        file.write(b"odd")
    ask("init", store)
    save(store, source, time=FIRST)
    os.truncate(os.fsencode(source) + b"/" + ODD, 1)
    save(store, source, time=FIRST + DAY)
    monkeypatch.setenv("ARCHIVER_STORE", str(store))
    name = os.fsdecode(b"/" + ODD)
    for command in (("ls", "latest"), ("ls", "-R", "latest"), ("ls", "--tree", "-l", "latest"), ("find", "*line*"),
                    ("find", "-l", "*"), ("history", name), ("diff", "latest"), ("diff", "latest", str(source)),
                    ("diff", "latest", "--sizes")):  # fmt: skip
        done = call(*command)
        assert done.code in (0, 4)
        assert all(text.isprintable() for text in done.lines), command
        assert "sizes" in command[-1] or "\\x1b[31m \\xff" in done.out or "no" in command or done.code == 0
    for command in (("ls", "latest"), ("find", "*line*"), ("history", name), ("diff", "latest")):
        document = call(*command, "--json").document
        assert name in [item["path"] for item in document["items"]]
    assert call("ls", "latest", "-0").raw == ODD + b"\0"
    assert call("find", "new*", "-0").raw == b"/" + ODD + b"\0"
    assert call("diff", "latest", "-0").raw == b"/" + ODD + b"\0"
    versions = call("history", name, "-0").raw.split(b"\0")[:-1]
    assert versions == [b"/" + ODD + b"@" + format_time(when).encode() for when in (FIRST, FIRST + DAY)]
    assert call("cat", "host/test", os.fsdecode(versions[0])).raw == b"odd"


def test_listings_in_blocks(store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories that the database has are listed as a whole, and shown as the archive's are, entry by entry."""
    (source / "below" / "deep" / "last").mkdir(parents=True)
    (source / "below" / "deep" / "file").write_bytes(b"contents")
    (source / "below" / "aside").mkdir()
    os.link(source / "file", source / "below" / "link")
    with open(os.fsencode(source) + b"/below/" + ODD, "wb") as file:
        file.write(b"odd")
    save(store, source)
    base = "--store", store, "ls", "latest"

    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError

    listings = product(("/", "below", "/below/deep/", "file", "/below/deep/file"), ((), ("-R",), ("--tree",)),
                       ((), ("-l",), ("--json",), ("-0",)))  # fmt: skip
    for path, way, form in listings:
        if way == ("--tree",) and form == ("-0",):
            continue
        with monkeypatch.context() as patched:
            if not path.endswith("file"):
                patched.setattr(files, "listing", forbidden)
            done = call(*base, path, *way, *form)
        assert done.code == 0 and done.raw
        with monkeypatch.context() as patched:
            patched.setattr(catalog, "open_catalog", lambda *_: None)
            patched.setattr(files, "_blocks", forbidden)
            assert call(*base, path, *way, *form) == done
        if form == ("--json",):
            assert all(item["path"].startswith("/" + path.strip("/")) for item in done.document["items"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("find", "--size", "ten"), "is no size"),
        (("find", "--size", "9" * 5000), "is no size"),
        (("find", "--newer", "9" * 5000 + "d"), "is no time"),
        (("find", "--newer", "yesterday"), "is no time"),
        (("find", "--regex", "("), "is no regular expression"),
        (("find", "a["), "is no pattern"),
        (("find", "--snapshot", "latest", "--group", "host/tester"), "exclude each other"),
        (("find", "-0", "--json"), "names only"),
        (("history", "-0", "--json", "x"), "names only"),
        (("diff", "latest", "-0", "--sizes"), "names only"),
        (("diff", "latest", "nonsense"), "is not a snapshot"),
    ],
)
def test_nonsense(store: Path, arguments: tuple[str, ...], reason: str) -> None:
    done = call("--store", store, *arguments)
    assert done.code == 2
    assert reason in (done.document["error"]["message"] if "--json" in arguments else done.err)


def test_what_is_not_there(store: Path, tmp_path: Path) -> None:
    assert call("--store", store, "history", "/absent").code == 10
    assert call("--store", store, "find", "absent").code == 0
    assert call("--store", store, "find", "--group", "host/absent").code == 10
    assert call("--store", store, "diff", "latest", str(tmp_path / "absent")).code == 10
    assert call("--store", store, "diff", "latest", "--path", "/absent", "/").code == 10


def test_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    source.mkdir()
    for name, size, when in (("small", 10, FIRST), ("large", 3 << 20, FIRST + DAY), ("old", 5, 1_000_000)):
        (source / name).write_bytes(bytes(size))
        os.utime(source / name, (when, when))
    ask("init", store)
    save(store, source, time=FIRST + DAY)
    monkeypatch.setenv("ARCHIVER_STORE", str(store))
    for arguments, expected in (
        (("--size", "+1M"), {"/large"}),
        (("--size", "-1k"), {"/small", "/old"}),
        (("--size", "+6", "--size", "-1G"), {"/small", "/large"}),
        (("--size", "10"), {"/small"}),
        (("--newer", "2023-11-15T00:00:00Z"), {"/large"}),
        (("--older", "1970-02-01"), {"/old"}),
        (("--older", "1h", "--newer", "2023-11-01", "*l*"), {"/small", "/large"}),
        (("--regex", "^/.{5}$", "--type", "f"), {"/small", "/large"}),
        (("--type", "d"), set()),
    ):
        assert {item["path"] for item in ask("find", *arguments)["items"]} == expected, arguments


def test_diff_with_a_live_directory(store: Path, source: Path, tmp_path: Path) -> None:
    assert call("--store", store, "diff", "latest", str(source)).code == 0
    (source / "file").write_bytes(b"other bytes!!\n")
    (source / "link").unlink()
    done = call("--store", store, "diff", "latest", str(source))
    assert done.code == 4
    assert [line.split("  ")[0] for line in done.lines[:-1]] == ["M /", "M /file", "- /link"]
    assert done.lines[-1] == "0 added, 1 removed, 2 changed; 14 B new, 14 B gone"
    document = call("--store", store, "diff", "latest", str(source), "--content", "--json").document
    assert document["before"] == SNAPSHOT and document["after"] == str(source)
    assert [item["what"] for item in document["items"] if item["path"] == "/file"] == [["mtime", "content"]]
    below = call("--store", store, "diff", "latest", "--path", "below", str(source / "below"))
    assert below.code == 0


def test_what_was_left_out_is_no_difference(tmp_path: Path, source: Path) -> None:
    (source / "cache").mkdir()
    (source / "cache" / "x").write_bytes(b"x")
    for mode in ("metadata", "legacy"):
        store = tmp_path / mode
        ask("init", store)
        ask("--store", store, "backup", f"tree.pxar:{source}", "--exclude", "/cache", "--mode", mode)
        assert call("--store", store, "diff", "latest", str(source)).lines == [
            "0 added, 0 removed, 0 changed; 0 B new, 0 B gone"
        ]


def test_what_was_left_out_below_a_path(tmp_path: Path, source: Path) -> None:
    """Excludes are anchored where the backup began, and those of a directory above count."""
    store, deep = tmp_path / "store", source / "below" / "*deep"
    deep.mkdir()
    for directory in (source, source / "below", deep):
        for name in ("one", "two", "three", "four"):
            (directory / name).write_bytes(b"x")
    (source / ".pxarexclude").write_bytes(b"/below/two\n/three\n")
    (source / "below" / ".pxarexclude").write_bytes(b"/*deep/four\n")
    ask("init", store)
    ask("--store", store, "backup", f"tree.pxar:{source}", "--exclude", "/below/one", "--exclude", "/\\*deep")
    base = ("--store", store, "diff", "latest")
    for path, directory in (("/", source), ("below", source / "below"), ("/below/*deep/", deep)):
        done = call(*base, "--path", path, str(directory), "--content")
        assert (done.code, done.out) == (0, "0 added, 0 removed, 0 changed; 0 B new, 0 B gone\n"), path
    (source / "below" / "three").unlink()
    (source / "below" / "new").write_bytes(b"")
    found = call(*base, "--path", "below", str(source / "below"), "--exclude", "/new").lines
    assert [line.split("  ")[0] for line in found[:-1]] == ["M /", "- /three"]
    found = call(*base, "--path", "below", str(source / "below"), "--exclude", "!/one").lines
    assert [line.split("  ")[0] for line in found[:-1]] == ["M /", "+ /new", "+ /one", "- /three"]


@pytest.mark.parametrize("second", ["snapshot", "directory"])
@pytest.mark.parametrize("mode", ["metadata", "legacy"])
def test_what_is_excluded_is_on_neither_side(store: Path, source: Path, mode: Mode, second: str) -> None:
    """Of two snapshots and of a live directory: gone, new and changed, with all that is below."""
    (source / "file").unlink()
    (source / "link").unlink()
    (source / "link").mkdir()
    (source / "new").mkdir()
    (source / "new" / "inside.o").write_bytes(b"12345")
    (source / "below" / "empty").write_bytes(b"full")
    save(store, source, time=FIRST + DAY, group=GroupRef("", "host", "tester"), mode=mode)
    other = "host/tester/" + format_time(FIRST + DAY) if second == "snapshot" else str(source)

    def changes(*arguments: str) -> dict[str, str]:
        done = call("--store", store, "diff", SNAPSHOT, other, *arguments, "--json")
        items = done.document["items"]
        summary = done.document["summary"]
        assert done.code == (4 if items else 0)
        assert summary["added"] + summary["removed"] + summary["changed"] == len(items)
        return {item["path"]: item["change"] for item in items if item["path"] != "/"}

    everything = {
        "/below/empty": "changed", "/file": "removed", "/link": "changed", "/new": "added", "/new/inside.o": "added"
    }  # fmt: skip
    assert changes() == changes("--exclude", "absent") == everything
    for patterns, left_out in (
        (["*.o"], {"/new/inside.o"}),
        (["/new"], {"/new", "/new/inside.o"}),
        (["file"], {"/file"}),
        (["/below", "file"], {"/below/empty", "/file"}),
        (["*", "!file"], everything.keys() - {"/file"}),
        (["/empty"], set()),
    ):
        arguments = [word for pattern in patterns for word in ("--exclude", pattern)]
        expected = {path: change for path, change in everything.items() if path not in left_out}
        assert changes(*arguments) == changes(*arguments, "--content") == expected, patterns
    assert changes("--exclude", "link/") == everything | {"/link": "removed"}  # a directory on one side alone
    if second == "snapshot":
        assert changes("--path", "below", "--exclude", "/empty") == {}  # from where the comparison begins
    wrong = call("--store", store, "diff", SNAPSHOT, other, "--exclude", "a[")
    assert wrong.code == 2 and "--exclude" in wrong.err


@pytest.mark.parametrize("name", [b"below", b"file"])
def test_what_cannot_be_read_is_no_difference(
    store: Path, source: Path, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only told, with exit code 3."""
    opening = linux.open_noatime

    def refusing(path: bytes, flags: int, directory: int) -> int:
        if path == name:
            raise PermissionError(errno.EACCES, "permission denied")
        return opening(path, flags, directory)

    os.utime(source / "file", (0, 0))  # or nobody would open it
    for module in (linux, content):
        monkeypatch.setattr(module, "open_noatime", refusing)
    done = call("--store", store, "diff", "latest", str(source), "--json")
    assert done.code == 3 and [item["path"] for item in done.document["errors"]] == ["/" + name.decode()]
    assert [item["path"] for item in done.document["items"]] == ["/file"] * (name != b"file")


def test_a_difference_beside_what_cannot_be_read(store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 4 is for comparisons that are complete."""
    (source / "link").unlink()
    assert call("--store", store, "diff", "latest", str(source)).code == 4
    opening = linux.open_noatime

    def refusing(path: bytes, flags: int, directory: int) -> int:
        if path in (b"below", b"empty"):
            raise PermissionError(errno.EACCES, "permission denied")
        return opening(path, flags, directory)

    monkeypatch.setattr(linux, "open_noatime", refusing)
    for arguments in ((), ("--sizes",)):
        done = call("--store", store, "diff", "latest", str(source), *arguments)
        assert done.code == 3 and "unreadable: /below: permission denied" in done.err
        assert done.lines[-1] == "0 added, 1 removed, 1 changed; 0 B new, 0 B gone; 1 could not be read"
    assert call("--store", store, "diff", "latest", str(source), "-0").code == 3
    monkeypatch.setattr(content, "open_noatime", refusing)
    os.utime(source / "below" / "empty", (0, 0))
    below = call("--store", store, "diff", "latest", "--path", "below", str(source / "below"), "--json")
    assert below.code == 3 and [error["path"] for error in below.document["errors"]] == ["/empty"]


# Encrypted, and by a server.


def test_encrypted_snapshots_need_their_key(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, keyfile = tmp_path / "store", write_key(tmp_path / "key.json", KEY.enc_key)
    ask("init", store)
    for when in (FIRST, FIRST + DAY):
        save(store, source, time=when, crypt=KEY)
    monkeypatch.setenv("ARCHIVER_STORE", str(store))
    commands = (("ls", "latest"), ("find", "*"), ("history", "/file"), ("diff", "latest"), ("cat", "latest", "/file"),
                ("diff", "latest", str(source)))  # fmt: skip
    for command in commands:
        assert call(*command).code == 12, command
        assert "file" not in call(*command).out
        assert call(*command, "--keyfile", keyfile).code == 0, command
    (item,) = ask("history", "/file", "--keyfile", keyfile)["items"]
    assert item["snapshots"] == 2
    other = write_key(tmp_path / "other.json", bytes(32))
    assert {call(*command, "--keyfile", other).code for command in commands} == {12}


def test_each_manifest_is_read_once(store: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a key is in use and none of them is signed."""
    for night in range(1, 12):
        save(store, source, time=FIRST + night * DAY, group=GroupRef("", "host", "tester"))
    read, manifest = [], Store.manifest

    def counted(opened: Store, ref: SnapshotRef, *, from_file: bool = False) -> Manifest:
        read.append(ref)
        return manifest(opened, ref, from_file=from_file)

    monkeypatch.setattr(Store, "manifest", counted)
    keyfile = write_key(tmp_path / "key.json", bytes(32))
    monkeypatch.setenv("ARCHIVER_KEYFILE", str(keyfile))
    assert ask("--store", store, "find", "file")["items"][0]["snapshots"] >= 11
    assert len(read) == len(set(read)) == 12
    save(store, source, time=FIRST + 20 * DAY, group=GroupRef("", "host", "tester"), crypt=CryptConfig(bytes(32)))
    assert call("--store", store, "find", "file").code == 20  # somebody may have put the others there
    assert call("--store", store, "find", "file", "--allow-unsigned").code == 0


def test_listing_reads_the_owner_of_a_group_once(store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for night in range(1, 5):
        save(store, source, time=FIRST + night * DAY, group=GroupRef("", "host", "tester"))
    read, owner = [], Store.owner

    def counted(opened: Store, group: GroupRef) -> str | None:
        read.append(group)
        return owner(opened, group)

    monkeypatch.setattr(Store, "owner", counted)
    items = ask("--store", store, "snapshots")["items"]
    assert [item["owner"] for item in items] == ["root@pam"] * 5 and len(read) == 1


def test_where_a_hit_is_when_there_are_several_groups(store: Path, source: Path) -> None:
    base = "--store", store, "find", "file"
    assert call(*base).lines == ["/file"]
    save(store, source, time=FIRST + DAY, group=GroupRef("", "host", "other"))
    ask("--store", store, "ns", "create", "deep")
    save(store, source, time=FIRST + DAY, group=GroupRef("deep", "host", "other"))
    groups = ["host/other", "host/tester", "ns/deep/host/other"]
    assert call(*base).lines == [f"{group} /file" for group in groups]
    named = [line.split()[-2:] for line in call(*base, "-l").lines]
    assert [group for group, _ in named] == groups
    for group, path in named:
        assert call("--store", store, "cat", group, path).raw == (source / "file").read_bytes()
        assert path in call("--store", store, "history", "/file", "--group", group).out
        assert call(*base, "--group", group).lines == call(*base, "--snapshot", group).lines == ["/file"]
    assert call(*base, "-0").raw == b"/file\0" * 3


def test_one_group_without_its_key_does_not_hide_the_others(store: Path, source: Path) -> None:
    save(store, source, time=FIRST, crypt=KEY, group=GroupRef("", "host", "aaa"))
    done = call("--store", store, "find", "file")
    assert done.code == 12 and done.lines == ["host/tester /file"]
    done = call("--store", store, "history", "/file")
    assert done.code == 12 and len(done.lines) == 2


def test_one_snapshot_that_is_bad_or_gone_does_not_hide_the_others(
    store: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = save(store, source, time=FIRST, group=GroupRef("", "host", "aaa")).snapshot
    bad = save(store, source, time=FIRST + 1, group=gone.group).snapshot
    good = save(store, source, time=FIRST + 2, group=gone.group).snapshot
    (store / bad.path / "index.json.blob").write_bytes(b"no manifest")
    manifest = Store.manifest

    def vanished(self: Store, ref: SnapshotRef, **options: bool) -> Manifest:
        if ref == gone:
            raise NotFound(f"there is no snapshot {ref}")
        return manifest(self, ref, **options)

    monkeypatch.setattr(Store, "manifest", vanished)
    for command in (("find", "file"), ("history", "/file")):
        done = call("--store", store, *command, "--group", "host/aaa", "--json")
        assert done.code == 20 and str(bad) in done.document["error"]["message"]
        assert [item["snapshot"] for item in done.document["items"]] == [str(good)]


def test_unsigned_snapshots_do_not_hide_the_others(
    store: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nightly runs got their key some day: with it what is signed is looked into, and all other groups."""
    monkeypatch.setenv("ARCHIVER_KEYFILE", str(write_key(tmp_path / "key.json", KEY.enc_key)))
    group = GroupRef("", "host", "aaa")
    plain = [str(save(store, source, time=FIRST + night, group=group).snapshot) for night in range(2)]
    signed = [str(save(store, source, time=FIRST + night, group=group, crypt=KEY).snapshot) for night in (5, 6)]
    other = str(save(store, source, time=FIRST, group=GroupRef("", "host", "zzz"), crypt=KEY).snapshot)
    for command in (("find", "file"), ("history", "/file")):
        done = call("--store", store, *command, "--json")
        document = done.document
        assert done.code == 20
        assert {(item["first"], item["snapshot"]) for item in document["items"]} == {
            (signed[0], signed[1]), (SNAPSHOT, SNAPSHOT), (other, other)
        }  # fmt: skip
        assert [one["snapshot"] for one in document["not_searched"]] == plain
        assert all("is unsigned" in one["reason"] for one in document["not_searched"])
        assert document["error"]["code"] == "unsigned" and "(and 1 more)" in document["error"]["message"]
        done = call("--store", store, *command, "-q")
        assert done.code == 20 and done.lines and "--allow-unsigned" in done.err
        assert all(f"not searched: {name}: " in done.err for name in plain)
        assert ask("--store", store, *command, "--allow-unsigned")["not_searched"] == []
    assert call("--store", store, "history", "/absent").code == 20  # nobody knows


def test_unsigned_is_refused_where_nothing_that_is_signed_can_be_opened(
    store: Path, source: Path, tmp_path: Path
) -> None:
    """Of a group that is signed with a key that is not at hand."""
    group = GroupRef("", "host", "aaa")
    signed = save(store, source, time=FIRST, group=group, crypt=KEY).snapshot
    forged = save(store, source, time=FIRST + 1, group=group).snapshot
    other = write_key(tmp_path / "other.json", bytes(32))
    base = ("--store", store, "find", "file", "--group", "host/aaa", "--keyfile", other, "--json")
    document = call(*base).document
    assert document["items"] == []
    assert [one["snapshot"] for one in document["not_searched"]] == [str(signed), str(forged)]
    assert document["error"]["code"] == "key"
    assert [item["snapshot"] for item in call(*base, "--allow-unsigned").document["items"]] == [str(forged)]


@pytest.mark.parametrize("lost", ["chunk", "index"])
def test_an_archive_that_cannot_be_read_does_not_hide_the_others(store: Path, source: Path, lost: str) -> None:
    """Where the database has lost what is in it."""
    group = GroupRef("", "host", "aaa")
    (source / "old").write_bytes(b"")
    bad = save(store, source, time=FIRST, group=group).snapshot
    (source / "old").unlink()
    good = save(store, source, time=FIRST + 1, group=group).snapshot
    index = load_index(str(store / bad.path / "tree.mpxar.didx"))
    digest = index.digests[0].tobytes().hex()
    (store / ".chunks" / digest[:4] / digest if lost == "chunk" else store / bad.path / "tree.ppxar.didx").unlink()
    shutil.rmtree(store / ".archiver" / "db")
    for command in (("find", "file"), ("history", "/file")):
        done = call("--store", store, *command, "--json")
        assert done.code == 20
        assert [one["snapshot"] for one in done.document["not_searched"]] == [str(bad)]
        assert [item["snapshot"] for item in done.document["items"]] == [str(good), SNAPSHOT]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("crypt", [None, KEY], ids=["plain", "key"])
@pytest.mark.parametrize("command", [("find", "file"), ("find",), ("history", "/file")])
def test_snapshots_that_are_removed_meanwhile_are_left_out(
    store: Path,
    source: Path,
    tmp_path: Path,
    command: tuple[str, ...],
    crypt: CryptConfig | None,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the catalog is asked for what is in them, or after."""
    group = GroupRef("", "host", "aaa")
    saved = []
    for night in range(5):
        (source / f"night-{night}").write_bytes(b"")
        (source / "file").write_bytes(b"contents" * (night + 1))
        saved.append(save(store, source, time=FIRST + night, group=group, crypt=crypt, mode="metadata").snapshot)
    removed: list[SnapshotRef] = []

    def remove() -> None:
        for ref in (saved[0], saved[2], saved[4]):
            assert call("--store", store, "forget", str(ref)).code == 0
            removed.append(ref)

    def opening(snapshots: list[Snapshot], name: str) -> tuple[list[History], list[Snapshot]]:
        if moment == "before" and not removed:
            remove()
        found = open_histories(snapshots, name)
        if moment == "after" and not removed:
            remove()
        return found

    monkeypatch.setattr(search, "open_histories", opening)
    keyfile = ("--keyfile", write_key(tmp_path / "key.json", KEY.enc_key)) if crypt is not None else ()
    done = call("--store", store, *command, "--group", "host/aaa", "--json", *keyfile)
    assert (done.code, done.err) == (0, "")
    assert len(removed) == 3 and done.document["not_searched"] == []
    found = {item["snapshot"] for item in done.document["items"] if item["path"] == "/file"}
    assert {str(saved[1]), str(saved[3])} <= found


def test_a_passphrase_is_asked_for_once(store: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is wrong, and many snapshots need the key."""
    for night in range(5):
        save(store, source, time=FIRST + night, group=GroupRef("", "host", "aaa"), crypt=KEY)
    asked = []

    def wrong(self: Context) -> CryptConfig | None:
        asked.append(self)
        raise KeyProblem("the passphrase is wrong")

    monkeypatch.setattr(Context, "key", wrong)
    done = call("--store", store, "find", "file")
    assert done.code == 12 and done.lines == ["host/tester /file"]
    assert len(asked) == 1 and done.err.count("not searched") == 5
    done = call("--store", store, "find", "file", "--keyfile", "/it")
    assert (done.code, done.out, done.err) == (12, "", "archiver: the passphrase is wrong\n")


def test_golden_snapshots(tmp_path: Path) -> None:
    """Of a server: split and not, plain and encrypted, images and blobs beside them."""
    store, keyfile = unpack(tmp_path), write_key(tmp_path / "key.json")
    for snapshot in (*PLAIN, *ENCRYPTED):
        key = ("--keyfile", keyfile) if snapshot in ENCRYPTED or "signed" in snapshot else ()
        base = ("--store", store, *key)
        assert call(*base, "ls", snapshot).code == 0
        if snapshot not in TREES:
            continue
        archive = ("--archive", TREES[snapshot].rsplit("/", 1)[1])
        before = ask(*base, "ls", "-R", snapshot, *archive)["items"]  # as the archive says
        found = ask(*base, "find", "--snapshot", snapshot, *archive)["items"]  # records it
        after = ask(*base, "ls", "-R", snapshot, *archive)["items"]
        assert before == after and len(before) > 3
        assert [item["path"] for item in found] == [item["path"] for item in before]
    alpha = [name for name in PLAIN if "alpha" in name]
    for first, second in ((alpha[0], alpha[1]), (alpha[1], alpha[2]), (alpha[2], alpha[0])):
        documents = [call("--store", store, "diff", first, second, "--json", *more) for more in ((), ("--content",))]
        items = [{item["path"]: item for item in done.document["items"]} for done in documents]
        assert {path for path, item in items[0].items()} <= items[1].keys()
    assert call("--store", store, "diff", alpha[0], alpha[0]).code == 0


def test_images_and_blobs(tmp_path: Path, source: Path) -> None:
    store = unpack(tmp_path)
    vm = "vm/100/2023-11-14T22:13:25Z"
    assert call("--store", store, "diff", vm, vm).code == 0
    done = call("--store", store, "diff", "host/alpha/2023-11-14T22:13:20Z", vm, "--json")
    kinds = {item["archive"]: (item["change"], item["after"]) for item in done.document["items"] if not item["path"]}
    listed = {item["archive"]: item["kind"] for item in ask("--store", store, "ls", vm)["items"]}
    for archive, kind in listed.items():
        if kind != "tree":
            change, after = kinds[archive]
            assert change == "added" and after is not None and after["kind"] == kind and after["size"] > 0


def test_two_archives(tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    ask("init", store)
    with Store.open(store, clock=SetClock(FIRST)) as opened:
        specs = [ArchiveSpec(name, str(source)) for name in ("one", "two")]
        backup(opened, specs, BackupOptions(GroupRef("", "host", "x"), time=FIRST), ignore)
    assert {item["archive"] for item in ask("--store", store, "find", "file")["items"]} == {"one.pxar", "two.pxar"}
    assert len(ask("--store", store, "find", "file", "--archive", "two")["items"]) == 1
    assert call("--store", store, "find", "file").lines == ["one.pxar/file", "two.pxar/file"]
    assert call("--store", store, "find", "file", "--archive", "two").lines == ["/file"]
    assert [line.split()[-1] for line in call("--store", store, "find", "file", "-l").lines] == [
        f"{name}.pxar/file@2023-11-14T22:13:20Z" for name in ("one", "two")
    ]
    for command in (("find", "file"), ("history", "/file")):
        absent = call("--store", store, *command, "--archive", "three", "--json")
        assert (absent.code, absent.error["hint"]) == (10, "there are: one.pxar, two.pxar")
    save(store, source, time=FIRST, group=GroupRef("", "host", "y"))
    (item,) = ask("--store", store, "find", "file", "--archive", "two")["items"]  # which not all groups have
    assert item["group"] == "host/x"
    found = call("--store", store, "find", "file").lines
    assert found[:2] == ["host/x one.pxar/file", "host/x two.pxar/file"] and found[2].startswith("host/y /")
    assert call("--store", store, "ls", "latest").lines == ["one.pxar", "two.pxar"]
    which = call("--store", store, "cat", "latest", "/file")
    assert which.code == 2 and "choose one: one.pxar, two.pxar" in which.err
    assert call("--store", store, "diff", "latest", str(source)).code == 2
    assert call("--store", store, "diff", "latest", str(source), "--archive", "two.pxar").code == 0
    (source / "file").write_bytes(b"longer contents\n")
    before = call("--store", store, "snapshots").lines[1].split()[0]
    named = [f"{name}.pxar:{source}" for name in ("one", "two")]
    told = call("--store", store, "backup", *named, "--id", "x", "--dry-run", "-v").lines
    assert [line.split()[1] for line in told if line.startswith("M")] == ["one.pxar/file", "two.pxar/file"]
    assert call("--store", store, "backup", *named, "--id", "x").code == 0
    lines = call("--store", store, "diff", before, "host/x").lines
    assert [line.split("  ")[0] for line in lines[:-1]] == ["M one.pxar/file", "M two.pxar/file"]
    lines = call("--store", store, "diff", before, "host/x", "--archive", "one").lines
    assert [line.split("  ")[0] for line in lines[:-1]] == ["M /file"]
    sizes = call("--store", store, "diff", before, "host/x", "--sizes").lines[1:-1]
    assert [line.split()[-1] for line in sizes] == ["one.pxar/", "two.pxar/"]
