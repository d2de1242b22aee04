"""Real processes: signals, streams that are closed or full, ordinary users, terminals."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import ROOT, Argument, Done, ask, call, process, start
from tests.cli.stores import SNAPSHOT, filled_store, small_tree

NOBODY = 65534
LONG = 120  # seconds after which a process that should have got somewhere is given up


def wait_for_session(store: Path, running: subprocess.Popen[bytes]) -> None:
    """Until the backup has begun to write its snapshot."""
    deadline = time.monotonic() + LONG
    while not list((store / ".archiver").glob("sessions/*/snapshot/*.ppxar.didx")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("as_json", [False, True])
def test_interrupted_backup(store: Path, source: Path, tmp_path: Path, number: signal.Signals, as_json: bool) -> None:
    endless = tmp_path / "endless"
    endless.mkdir()
    with (endless / "hole").open("wb") as file:
        file.truncate(1 << 40)
    options = ["--json"] if as_json else []
    running = start(
        "--store",
        store,
        "backup",
        endless,
        "--id",
        "tester",
        *options,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for_session(store, running)
        running.send_signal(number)
        out, err = running.communicate(timeout=LONG)
    finally:
        running.kill()
    assert running.returncode == 130, err
    assert b"Traceback" not in err and b"bug" not in err
    if as_json:
        assert json.loads(out)["error"]["code"] == "interrupted"
    else:
        assert out == b"" and err.splitlines()[-1] in (b"archiver: interrupted", b"archiver: terminated")
    assert [item["snapshot"] for item in ask("--store", store, "snapshots")["items"]] == [SNAPSHOT]
    assert list((store / ".archiver/sessions").iterdir()) == []
    assert ask("--store", store, "backup", source, "--id", "tester")["errors"] == []
    assert ask("--store", store, "verify")["errors"] == []
    assert ask("--store", store, "db", "check")["items"] == []


def test_killed_backup(store: Path, source: Path, tmp_path: Path) -> None:
    """kill -9: what is left behind is not seen, and gone after the next backup."""
    endless = tmp_path / "endless"
    endless.mkdir()
    with (endless / "hole").open("wb") as file:
        file.truncate(1 << 40)
    running = start("--store", store, "backup", endless, "--id", "tester")
    try:
        wait_for_session(store, running)
    finally:
        running.kill()
        running.communicate()
    assert len(list((store / ".archiver/sessions").iterdir())) == 1
    assert [item["snapshot"] for item in ask("--store", store, "snapshots")["items"]] == [SNAPSHOT]
    assert ask("--store", store, "verify")["errors"] == []
    assert ask("--store", store, "backup", source, "--id", "tester")["errors"] == []
    assert list((store / ".archiver/sessions").iterdir()) == []


@pytest.fixture
def wide_store(tmp_path: Path) -> Path:
    """A listing much longer than a pipe holds."""
    source = tmp_path / "wide"
    source.mkdir()
    for number in range(2000):
        (source / f"{number:04d}-{'x' * 120}").write_bytes(b"")
    (source / "large").write_bytes(bytes(1 << 20))
    return filled_store(tmp_path / "wide-store", source)


@pytest.mark.parametrize("command", [["ls", "latest"], ["ls", "latest", "--json"], ["cat", "latest", "/large"]])
def test_reader_goes_away(wide_store: Path, command: list[str]) -> None:
    """As with ``| head -1``: no message, no traceback."""
    running = start("--store", wide_store, *command)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.read(10)
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(LONG) == 0
    running.stderr.close()


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("count", [0, 10])
def test_a_reader_that_goes_away_does_not_change_what_is_found(
    wide_store: Path, tmp_path: Path, more: list[str], count: int
) -> None:
    """Exit codes of what finds out something: 0 would say that nothing is different, and nothing damaged."""
    for file in (tmp_path / "wide").iterdir():
        os.truncate(file, 1)
    for chunk in (wide_store / ".chunks").glob("*/*"):
        os.truncate(chunk, 1)
    (tmp_path / "wide" / "new").mkdir()
    wide = (tmp_path / "again", tmp_path / "wide")
    filled_store(*wide)
    for file in (tmp_path / "wide").glob("*x"):
        file.unlink()
    ask("init", tmp_path / "empty")
    half = tmp_path / "half"
    filled_store(half, tmp_path / "wide")
    damaged = ask("--store", half, "backup", f"tree.pxar:{tmp_path / 'wide'}", "--id", "another")["snapshot"]
    (half / damaged / "index.json.blob").write_bytes(b"no manifest")
    commands: tuple[tuple[int, list[Argument]], ...] = (
        (20, ["--store", wide_store, "verify", *more]),
        (4, ["--store", wide[0], "diff", "latest", wide[1], *more]),
        (4, ["--store", wide[0], "diff", "latest", wide[1], "--path", "new", *more]),
        (10, ["--store", wide[0], "history", "absent", *more]),
        (20, ["--store", wide_store, "heal", "--dry-run", *more]),
        (4, ["sync", wide[0], tmp_path / "empty", "--check", *more]),
        (20, ["--store", half, "find", "*", *more]),
        (20, ["--store", half, "history", "/", *more]),
    )
    for code, command in commands:
        assert code_with_a_reader_that_goes_away(count, *command) == code, command


def code_with_a_reader_that_goes_away(count: int, *command: Argument) -> int:
    """It reads ``count`` bytes."""
    running = start(*command, env=os.environ | {"PYTHONUNBUFFERED": "1"})  # the first line finds nobody
    assert running.stdout is not None and running.stderr is not None
    running.stdout.read(count)
    running.stdout.close()
    running.stderr.read()
    running.stderr.close()
    return running.wait(LONG)


@pytest.fixture
def damaged_store(tmp_path: Path) -> Path:
    """There is more to tell about it than a stream holds back: chunks are missing that many snapshots have."""
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "file").write_bytes(os.urandom(1 << 20))
    place = filled_store(tmp_path / "damaged", tmp_path / "few")
    for second in range(30):
        more = "--id", f"{'x' * 60}{second}", "--time", str(1_700_000_001 + second), "--chunk-size", "64"
        ask("--store", place, "backup", f"tree.pxar:{tmp_path / 'few'}", *more)
    for chunk in (place / ".chunks").glob("*/*"):
        chunk.unlink()
    return place


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_damage_remains_when_the_reader_goes_away(damaged_store: Path, tmp_path: Path, more: list[str]) -> None:
    ask("init", tmp_path / "copy")
    for count in (0, 10):
        heal: list[Argument] = ["--store", damaged_store, "heal", *more]
        assert code_with_a_reader_that_goes_away(count, *heal, "--dry-run") == 20
        assert code_with_a_reader_that_goes_away(count, *heal) == 20
        check: list[Argument] = ["sync", damaged_store, tmp_path / "copy", "--check", *more]
        assert code_with_a_reader_that_goes_away(count, *check) == 4


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_jobs_are_wrong_when_the_reader_goes_away(store: Path, more: list[str]) -> None:
    profiles = Path(os.environ["XDG_CONFIG_HOME"]) / "archiver"
    profiles.mkdir(parents=True)
    for number in range(100):
        (profiles / f"job-{number}-{'x' * 40}.toml").write_text(f"nonsense-{'x' * 100} = 1\n")
    commands: list[tuple[Argument, ...]] = [
        ("job", "status"),
        ("job", "check"),
        ("status",),
        ("--store", store, "status"),
    ]
    for command in commands:
        assert code_with_a_reader_that_goes_away(10, *command, *more) == 2, command


def test_what_was_asked_for_is_done_when_the_reader_goes_away(store: Path, source: Path) -> None:
    group = "host/" + "x" * 80
    for second in range(60):
        ask("--store", store, "backup", source, "--id", "x" * 80, "--time", str(1_700_000_000 + second))
    assert code_with_a_reader_that_goes_away(10, "--store", store, "forget", "--all", group) == 0
    assert [item["snapshot"] for item in ask("--store", store, "snapshots")["items"]] == [SNAPSHOT]


@pytest.mark.parametrize("command", [["snapshots"], ["snapshots", "--json"], ["nonsense"], ["nonsense", "--json"]])
@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_closed_streams(store: Path, command: list[str], closed: list[int]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    done = process("--store", store, *command, preexec_fn=close)
    assert done.code == (2 if "nonsense" in command else 0)
    if "--json" in command and 1 not in closed:
        json.loads(done.raw)


def test_files_do_not_take_the_place_of_closed_streams(store: Path, source: Path) -> None:
    """Nothing that is said ends up in the files of the store."""

    def close() -> None:
        for number in range(3):
            os.close(number)

    assert process("--store", store, "backup", source, "--id", "tester", "-v", preexec_fn=close).code == 0
    assert ask("--store", store, "verify")["errors"] == []
    assert ask("--store", store, "snapshots")["items"][1]["problem"] is None


@pytest.mark.parametrize("command", [["snapshots"], ["snapshots", "--json"], ["ls", "nonsense", "--json"]])
def test_full_disk_behind_stdout(store: Path, command: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = process("--store", store, *command, stdout=full)
    assert done.code == (2 if "nonsense" in command else 40)


def test_full_disk_behind_both(store: Path) -> None:
    with open("/dev/full", "wb") as full:
        assert process("--store", store, "snapshots", stdout=full, stderr=full).code == 40


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    source = tmp_path / "odd"
    source.mkdir()
    names = ["grün-日本".encode(), b"broken-\xff\xfe", b"red-\x1b[31m\x07", b"two\nlines", "\u202eright\x9b".encode()]
    for name in names:
        (source / os.fsdecode(name)).write_bytes(name)
    store = filled_store(tmp_path / "odd-store", source)
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    for command in (["ls", "latest"], ["ls", "-l", "latest"], ["debug", "inspect", source / os.fsdecode(names[2])]):
        done = process("--store", store, *command, env=environment)
        for character in (b"\x1b", b"\x07", b"\x9b", b"\xff", "\u202e".encode()):
            assert character not in done.raw.replace(b"gr\xfcn", b"")
        assert len(done.raw.splitlines()) == (5 if command[0] == "ls" else 0)
    if encoding == "ascii":
        for name in names:
            assert process("--store", store, "cat", b"latest", name, env=environment).raw == name
    listed = json.loads(process("--store", store, "ls", "latest", "--json", env=environment).raw)["items"]
    assert {item["path"].encode("utf-8", "surrogateescape") for item in listed} == {b"/" + name for name in names}


@pytest.mark.parametrize("name", [b"x\xff\xfe", b"\x1b[31mred", b"a\nb"])
def test_places_with_odd_names(tmp_path: Path, source: Path, name: bytes) -> None:
    """Stores, sources and targets: they work, and nothing raw is printed of them."""
    place = tmp_path / os.fsdecode(name)
    commands: list[list[str | Path]] = [
        ["init", place],
        ["--store", place, "backup", f"tree.pxar:{source}"],
        ["--store", place, "backup", place / ".chunks"],
        ["--store", place, "status"],
        ["--store", place, "db", "stats"],
        ["--store", place, "restore", "latest", place.with_name(place.name + "-out"), "--archive", "tree"],
        ["--store", place, "verify"],
        ["--store", place / "absent", "verify"],
        ["--store", place, "ls", "latest", place],
        ["--store", place, "restore", "latest", place],
        ["--store", place, "backup", place / "absent"],
        ["--store", place, "backup", source, "--keyfile", place / "absent"],
        ["--store", place, "backup", source, "--include-dev", place / "absent"],
        ["debug", "inspect", place / "absent"],
        ["debug", "inspect", place / ".lock"],
        ["init", place, "--name", place.name],
        ["--store", place, place.name],
        ["--store", place, "ls", place.name, f"--{place.name}"],
    ]
    for command in commands:
        done = call(*command)
        for output in (done.raw, done.err.encode()):
            assert b"\x1b" not in output and b"\xff" not in output and b"a\nb" not in output, command
        call(*command, "--json")
    assert process("--store", place, "verify").code == 0


def test_escapes_of_a_terminal_stay_inside(store: Path, tmp_path: Path) -> None:
    """Names of files in problems of verify and restore, notes and targets of links in lists."""
    source = tmp_path / "evil"
    source.mkdir()
    (source / "\x1b]0;title\x07").write_bytes(b"contents")
    (source / "link").symlink_to("\x1b[2J")
    name = ask("--store", store, "backup", source, "--id", "evil", "--note", "\x1b[31mnote")["snapshot"]
    for chunk in ask("debug", "inspect", store / name / "evil.ppxar.didx")["chunks"]:
        (store / ".chunks" / chunk["digest"][:4] / chunk["digest"]).unlink()
    for command in (
        ["verify"],
        ["restore", name, tmp_path / "out"],
        ["cat", name, "/\x1b]0;title\x07"],
        ["ls", "-l", name],
        ["snapshots"],
        ["files", name],
    ):
        done = call("--store", store, *command)
        assert "\x1b" not in done.out + done.err and "\x07" not in done.out + done.err
    assert "\\x1b]0;title\\x07" in call("--store", store, "verify").out


def test_progress_on_a_terminal(store: Path, tmp_path: Path) -> None:
    """The progress line is taken away again, and results do not mix with it."""
    source = small_tree(tmp_path / "shown")
    leader, follower = pty.openpty()
    try:
        done = process("--store", store, "backup", source, "--id", "shown", stderr=follower)
        assert done.code == 0 and "snapshot host/shown/" in done.out
    finally:
        os.close(leader)
        os.close(follower)


@pytest.fixture
def shared_place() -> Iterator[Path]:
    """A directory that other users can reach, unlike those of pytest."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    place = Path(tempfile.mkdtemp(prefix="archiver-test-"))
    place.chmod(0o755)
    (place / "home").mkdir()
    os.chown(place / "home", NOBODY, NOBODY)
    try:
        yield place
    finally:
        shutil.rmtree(place)


# An interpreter below /root cannot be started by another user: one that runs already becomes that user.
AS_NOBODY = f"""
import difflib, importlib, os, pkgutil, sys, archiver, formats, lmdb._envid, numpy.ma
import encodings.ascii, encodings.idna, encodings.latin_1
for package in (archiver, formats):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
from archiver.cli.main import main
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
main(sys.argv[1:])
"""


def as_nobody(place: Path, *arguments: Argument) -> Done:
    """Run the program as an ordinary user whose home is in ``place``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ARCHIVER", "XDG"))}
    environment |= {"HOME": str(place / "home"), "TMPDIR": str(place / "home")}
    return process(*arguments, program=["-c", AS_NOBODY], env=environment)


def test_ordinary_user(shared_place: Path) -> None:
    """Unreadable files end with exit code 3 and are named in the result and in the snapshot's log."""
    source = small_tree(shared_place / "source")
    (source / "secret").write_bytes(b"root's")
    (source / "secret").chmod(0)
    (source / "closed").mkdir(0o700)
    done = as_nobody(shared_place, "backup", source, "--json")
    assert done.code == 3
    assert {error["path"] for error in done.document["errors"]} == {"/secret", "/closed"}
    assert done.document["files"]["read_errors"] == 2
    quiet = as_nobody(shared_place, "backup", source, "-q")
    assert quiet.code == 3 and "unreadable: /secret: permission denied" in quiet.err and quiet.raw == b""
    log = next((shared_place / "home/.local/share/archiver/store/host").glob("*/*/client.log.blob"))
    assert b"/secret" in call("debug", "inspect", log, "--decode", "-").raw
    out = shared_place / "home/out"
    restored = as_nobody(shared_place, "restore", "latest", out, "--json")
    assert restored.code == 3  # the owner was root
    assert {error["kind"] for error in restored.document["errors"]} == {"attribute"}
    assert (out / "file").read_bytes() == b"some contents\n"


@pytest.mark.parametrize("hidden", ["nothing", "store", "parent"])
def test_store_of_another_user(shared_place: Path, hidden: str) -> None:
    (shared_place / "parent").mkdir(0o755)
    store = filled_store(shared_place / "parent/store", small_tree(shared_place / "source"))
    if hidden == "store":
        store.chmod(0o700)
    if hidden == "parent":
        store.parent.chmod(0o700)
    for command in (
        ["verify"],
        ["db", "rebuild"],
        ["restore", "latest", shared_place / "home/out"],
        ["backup", shared_place / "source"],
        ["init", store],
    ):
        done = as_nobody(shared_place, "--store", store, *command, "--json")
        assert done.code in (1, 2), command
        assert "permission denied" in done.error["message"] or "read-only" in done.error["message"] or "init" in command


def test_readable_store_of_another_user(shared_place: Path) -> None:
    """It can be read: everything that only reads works, without a trace in it."""
    store = filled_store(shared_place / "store", small_tree(shared_place / "source"))
    for path in (store / ".archiver", store / ".chunks", *(store / ".chunks").iterdir()):
        path.chmod(0o755)
    before = sorted(path for path in store.rglob("*"))
    for command in (
        ["snapshots"],
        ["verify"],
        ["status"],
        ["ls", "latest"],
        ["restore", "latest", shared_place / "home/out"],
    ):
        done = as_nobody(shared_place, "--store", store, *command, "--json")
        assert done.code in (0, 3), done.err + done.out
    assert sorted(path for path in store.rglob("*")) == before
    done = as_nobody(shared_place, "--store", store, "backup", shared_place / "source", "--json")
    assert done.code == 2 and "read-only" in done.error["message"]


def test_places_that_cannot_be_written(shared_place: Path, store: Path) -> None:
    locked = shared_place / "locked"
    locked.mkdir(0o755)
    done = as_nobody(shared_place, "init", locked / "store", "--json")
    assert done.code == 2 and "permission denied" in done.error["message"]
    readable = filled_store(shared_place / "store", small_tree(shared_place / "source"))
    for path in (readable / ".archiver", readable / ".chunks", *(readable / ".chunks").iterdir()):
        path.chmod(0o755)
    done = as_nobody(shared_place, "--store", readable, "restore", "latest", locked / "out", "--json")
    assert done.code == 1 and "permission denied" in done.error["message"]


def test_start_is_fast_because_little_is_imported() -> None:
    """No timing: the heavy modules are not there after --help."""
    heavy = {"numpy", "cryptography", "lmdb", "zstandard", "blake3", "segno", "traceback"}
    code = f"import sys; from archiver.cli.main import run; run(['--help'], False); print(sys.modules.keys() & {heavy})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "question",
    [
        ("snapshots",),
        ("ls", "latest"),
        ("ls", "-lR", "latest"),
        ("cat", "latest", "/file"),
        ("find", "*file*"),
        ("history", "/file"),
        ("diff", "host/tester"),
    ],
    ids=" ".join,
)
def test_questions_about_a_small_tree_are_answered_without_numpy(
    store: Path, source: Path, question: tuple[str, ...]
) -> None:
    """Its import takes longer than all that is done here."""
    ask("--store", store, "backup", f"tree.pxar:{source}", "--id", "tester")
    run = f"run(['--store', {str(store)!r}, *{question}], False)"
    code = f"import sys; from archiver.cli.main import run; code = {run}; print(code, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] in ("0 False", "4 False")
