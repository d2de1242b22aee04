"""The catalog shell: through a pipe, and at a terminal with completion and history."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from archiver.browse.navigator import Navigator
from archiver.browse.snapshot import Snapshot
from archiver.cli.output import Output
from archiver.cli.shell import _talk
from archiver.cli.shell_commands import COMMANDS, Shell
from archiver.cli.shell_completion import Completer
from archiver.cli.shell_words import last_word, quote, split
from archiver.core.events import ignore
from archiver.errors import UsageError
from archiver.store.store import Store
from tests.cli.command import Done, call, start
from tests.compare import differences
from tests.golden_store import ENCRYPTED, unpack, write_key
from tests.stores import KEY, make_store, save
from tests.trees import ODD_NAMES

PATIENCE = 60


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "docs/deep/er").mkdir(parents=True)
    (tree / "docs/a file.txt").write_bytes(b"one\n")
    (tree / "docs/deep/er/report.txt").write_bytes(b"two\n")
    (tree / "docs/deep/empty").mkdir()
    (tree / "music").mkdir()
    (tree / "music/report.txt").write_bytes(b"three\n")
    os.link(tree / "music/report.txt", tree / "music/zlink")
    (tree / "here").symlink_to("docs/deep")
    (tree / "docs/up").symlink_to("../music")
    (tree / "absolute").symlink_to("/docs/deep/er")
    (tree / "loop").symlink_to("loop")
    (tree / "star*").write_bytes(b"four\n")
    return tree


@pytest.fixture
def store(tree: Path, tmp_path: Path) -> Path:
    store = make_store(tmp_path / "store")
    save(store, tree)
    return store


def scripted(store: Path, script: str, *arguments: str | Path) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(script.encode())))
        return call("--store", store, *arguments, "shell", "latest")


def test_as_a_process(store: Path) -> None:
    with start("--store", store, "shell", "latest", stdin=subprocess.PIPE) as running:
        out, err = running.communicate(b"cd docs\npwd\ncd nowhere\npwd\n")
    assert (running.returncode, out) == (10, b"/docs\n") and b"nowhere" in err


def test_looking_around(store: Path) -> None:
    """Links are followed in the middle of a path, from their own directory; above the root is the root."""
    done = scripted(
        store,
        """
        # a comment
        pwd
        cd docs/deep
        pwd
        ls
        cd ../../../..
        pwd
        ls here/er
        ls docs/up/zlink
        ls absolute/report.txt
        ls here
        cd docs
        ls "a file.txt"
        ls up/../docs
        exit
        this is not read any more
        """,
    )
    assert done.code == 0, done.err
    first = ["/", "/docs/deep", "empty", "er", "/", "report.txt", "zlink", "report.txt", "here", r"a\ file.txt"]
    assert done.lines == [*first, r"a\ file.txt", "deep", "up"]


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("cd here", 2, "is a symbolic link"),
        ("cd music/report.txt", 2, "is not a directory"),
        ("cd nowhere", 10, "there is no nowhere"),
        ("ls music/report.txt/x", 2, "is not a directory"),
        ("ls loop/x", 2, "too many symbolic links"),
        ("stat", 2, "usage: stat PATH"),
        ("fly", 2, "there is no command fly"),
        ("restore-selected x", 2, "nothing is selected"),
        ("find '[a'", 2, "not closed"),
        ("ls 'a", 2, "quote"),
        ("restore", 2, "usage: restore"),
        ("restore a --pattern", 2, "usage: restore"),
    ],
)
def test_first_failure_ends_a_script(store: Path, command: str, code: int, message: str) -> None:
    done = scripted(store, f"pwd\n{command}\npwd\n")
    assert (done.code, done.lines) == (code, ["/"]) and message in done.err


def test_stat(store: Path, tree: Path) -> None:
    os.chmod(tree / "docs/a file.txt", 0o640)
    os.utime(tree / "docs/a file.txt", ns=(0, 1_700_000_000_123_456_789))
    os.setxattr(tree / "docs/a file.txt", "user.colour", b"blue")
    save(store, tree)
    done = scripted(store, "stat docs/a\\ file.txt\nstat music/zlink\nstat docs/up\nls -l docs\n")
    assert done.code == 0, done.err
    for text in ("Size: 4  Type: file", "(0640/-rw-r-----)", ".123456789", "user.colour (4 bytes)"):
        assert text in done.out
    assert "Link: to /music/report.txt" in done.out and "/docs/up -> ../music" in done.out
    assert re.search(r"^-rw-r----- +0 +0 +4 .* a\\ file.txt$", done.out, re.MULTILINE)


def test_selecting_and_restoring(store: Path, tree: Path, tmp_path: Path) -> None:
    out, whole, some = tmp_path / "out", tmp_path / "whole", tmp_path / "some"
    done = scripted(
        store,
        f"""
        cd docs
        select deep
        select ./deep
        select ../music/report.txt
        select '/star*'
        deselect ../music/report.txt
        find report* --select
        find *.nothing --select
        list-selected --patterns
        list-selected
        restore-selected {out}
        restore {whole}
        restore {some} --pattern zlink
        clear-selected
        list-selected
        """,
    )
    assert done.code == 0, done.err
    assert done.lines[:6] == [
        *("selected: /docs/deep", "selected already: /docs/deep", "selected: /music/report.txt", r"selected: /star\*"),
        *("no longer selected: /music/report.txt", "/docs/deep/er/report.txt"),
    ]
    assert done.lines[6:11] == ["/music/report.txt", "selected: report*", "/docs/deep", r"/star\*", "report*"]
    chosen = [
        "/docs/deep",
        "/docs/deep/empty",
        "/docs/deep/er",
        "/docs/deep/er/report.txt",
        "/music/report.txt",
        "/star*",
    ]
    assert done.lines[11:17] == chosen
    assert [line.split(",")[0] for line in done.lines[17:]][-1].startswith("restored")
    found = {f"/{path.relative_to(out)}" for path in out.rglob("*")}
    assert found == {*chosen, "/docs", "/music"}
    assert (out / "star*").read_bytes() == b"four\n" and (out / "music/report.txt").read_bytes() == b"three\n"
    assert differences(tree, whole) == []
    assert (some / "music/zlink").read_bytes() == b"three\n" and len(list(some.rglob("*"))) == 2
    again = scripted(store, f"restore {whole}\n")  # what is there stays
    assert again.code == 0 and differences(tree, whole) == []


def test_document(store: Path) -> None:
    done = scripted(store, "cd docs\nls\n", "--json")
    assert done.code == 0
    assert done.document["archive"] == "tree.pxar" and done.document["items"] == [
        {"command": ["cd", "docs"], "lines": []},
        {"command": ["ls"], "lines": [r"a\ file.txt", "deep", "up"]},
    ]
    done = scripted(store, "ls\ncd nowhere\n", "--json")
    assert done.code == 10 and done.document["error"]["code"] == "not-found" and len(done.document["items"]) == 1


def test_golden(tmp_path: Path) -> None:
    """An encrypted snapshot of a PBS; without the key nobody gets in."""
    store = unpack(tmp_path)
    key = write_key(tmp_path / "key.json")
    for arguments, code in (((), 12), (("--keyfile", key), 0)):
        shell = ("--store", store, *arguments, "shell", ENCRYPTED[0])
        with start(*shell, stdin=subprocess.PIPE) as running:
            out, err = running.communicate(b"find *\n")
        assert running.returncode == code, err
        assert bool(out) == (code == 0)


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
def test_names_can_be_typed(name: bytes) -> None:
    assert split(f"ls {quote(name)}  x") == ["ls", os.fsdecode(name), "x"] and quote(name).isprintable()
    start, word, before = last_word(f"ls  {quote(name)}")
    assert (start, word, before) == (4, os.fsdecode(name), 1)


def test_words() -> None:
    assert split(r"""a "b c" 'd\n' e\ f "\n" '' \u00e4 \xff""") == ["a", "b c", r"d\n", "e f", "\n", "", "ä", "\udcff"]
    assert split("  ") == [] and last_word("ls ") == (3, "", 1) and last_word("ls 'a b") == (3, "a b", 1)
    with pytest.raises(UsageError):
        split("'")


def test_completion(store: Path) -> None:
    with Store.open(store, read_only=True) as opened:
        snapshot = Snapshot(opened, opened.find("latest"))
        shell = Shell(Navigator(snapshot.tree(snapshot.archive(None))), ignore)
        complete = Completer(shell).candidates
        assert complete("se") == ["select "] and complete("") == [f"{name} " for name in COMMANDS]
        assert complete("cd d") == ["cd docs/"] and complete("cd docs/") == [
            r"cd docs/a\ file.txt ", "cd docs/deep/", "cd docs/up "
        ]  # fmt: skip
        assert complete(r"stat docs/a\ f") == complete("stat 'docs/a f") == [r"stat docs/a\ file.txt "]
        assert complete("ls here/") == [] and complete("ls nowhere/") == []  # no link is gone through
        assert complete("find x --") == ["find x --select "] and complete("fly m") == []
        list(shell.run(["cd", "docs"]))
        assert complete("ls ../mu") == ["ls ../music/"]
        assert f"restore {store.parent}/store/" in complete(f"restore {store.parent}/st")


# -- at a terminal -----------------------------------------------------------------------------------------------------


class Terminal:
    """The shell at a pseudo terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:  # pragma: no cover
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, "-m", "archiver", *map(str, arguments)])
        self.shown = ""
        self._seen = 0

    def until(self, text: str) -> str:
        """What comes next up to ``text``."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.shown.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.fd], [], [], 1)[0]:
                self.shown += os.read(self.fd, 4096).decode(errors="replace")
        begun, self._seen = self._seen, found + len(text)
        return self.shown[begun : self._seen]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def interrupt(self, prompt: str) -> None:
        """Press Ctrl-C until ``prompt`` comes back: a signal just before readline waits is noticed at the next key."""
        deadline = time.monotonic() + PATIENCE
        while prompt not in self.shown[self._seen :]:
            assert time.monotonic() < deadline, self.shown
            self.type("\x03")
            if select.select([self.fd], [], [], 1)[0]:
                self.shown += os.read(self.fd, 4096).decode(errors="replace")
        self.until(prompt)

    def end(self) -> int:
        try:
            while os.read(self.fd, 4096):
                pass
        except OSError:
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_at_a_terminal(store: Path, tmp_path: Path) -> None:
    """Tab completes, errors are told and it goes on, Ctrl-C takes back a line, the next session knows the lines."""
    pytest.importorskip("readline")
    history = Path(os.environ["XDG_STATE_HOME"]) / "archiver/shell-history"
    terminal = Terminal("--store", store, "shell", "latest")
    terminal.until("pxar:/ > ")
    terminal.type("cd do\tdee\t\n")
    terminal.until("pxar:/docs/deep > ")
    terminal.type("cd /nowhere\n")
    terminal.until("there is no /nowhere")
    terminal.until("pxar:/docs/deep > ")
    terminal.type("ls nothing")
    terminal.until("ls nothing")
    terminal.interrupt("pxar:/docs/deep > ")
    terminal.type("ls e\t\t")
    assert "empty/" in terminal.until("er/")
    terminal.type("r\n")
    terminal.until("report.txt")
    terminal.until("pxar:/docs/deep > ")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert history.read_text().splitlines()[:2] == ["cd docs/deep/", "cd /nowhere"]
    assert history.stat().st_mode & 0o777 == 0o600
    terminal = Terminal("--store", store, "shell", "latest")
    terminal.until("pxar:/ > ")
    terminal.type("\x10\x10\n")  # two lines back
    terminal.until("there is no /nowhere")
    terminal.type("exit\n")
    assert terminal.end() == 0


def test_ctrl_c_while_one_is_answered_changes_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    told: list[str] = []

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def typed(prompt: str) -> str:
        prompts.append(prompt)
        if len(prompts) > 1:
            raise EOFError
        press()
        return "exit"

    class Pressed(Output):
        def line(self, text: str = "") -> None:
            told.append(text)
            if len(prompts) == 1:
                press()

    monkeypatch.setattr("builtins.input", typed)
    before = signal.getsignal(signal.SIGINT)
    with Store.open(store) as opened:
        snapshot = Snapshot(opened, opened.find("latest"))
        _talk(
            Shell(Navigator(snapshot.tree(snapshot.archive(None))), ignore),
            Pressed(as_json=False, quiet=False, verbose=False),
            None,
        )
    assert len(prompts) == len(told) == 2 and signal.getsignal(signal.SIGINT) is before


def test_no_history_of_encrypted_snapshots(tree: Path, tmp_path: Path) -> None:
    """What is typed has file names in it."""
    store = make_store(tmp_path / "store")
    save(store, tree, crypt=KEY)
    key = write_key(tmp_path / "key.json", bytes(range(32)))
    terminal = Terminal("--store", store, "--keyfile", key, "shell", "latest")
    terminal.until("pxar:/ > ")
    terminal.type("cd docs\n")
    terminal.until("pxar:/docs > ")
    terminal.type("exit\n")
    assert terminal.end() == 0
    assert not (Path(os.environ["XDG_STATE_HOME"]) / "archiver/shell-history").exists()
