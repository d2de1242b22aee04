"""What is told when, and that it is told once; each channel against a program or server that takes it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from archiver.core.clock import Clock
from archiver.core.disk import Disk
from archiver.core.events import Event, Listener, ignore
from archiver.errors import ArchiverError, UsageError
from archiver.jobs.history import Run
from archiver.jobs.load import load
from archiver.jobs.notify import channels as channels_module
from archiver.jobs.notify import desktop as desktop_module
from archiver.jobs.notify import web
from archiver.jobs.notify.after import tell
from archiver.jobs.notify.channels import Channel, Command, Desktop, Mail, Webhook, check_address
from archiver.jobs.notify.deliver import SAID, Subscription, Told, beat, deliver, try_out
from archiver.jobs.notify.memory import Memory
from archiver.jobs.notify.message import Message
from archiver.jobs.notify.program import run_program
from archiver.jobs.notify.web import check_url
from archiver.jobs.standing import Standing, Trouble

FULL = Trouble("failure backup /s", "failure", "backup of /s: the disk is full", 1_690_000_000)
CRASH = Trouble("crash 7", "crash", "the run did not end", 1_690_000_000)
STALE = Trouble("overdue verify /s", "overdue", "too old is the newest verify of /s", 1_690_000_000)
HELD = Trouble("held prune /s", "held", "prune of /s: 80 % of the files changed", 1_690_000_000)


class Fixed(Clock):
    def now(self) -> int:
        return 1_700_000_000


@dataclass
class Heard:
    """A channel that keeps what it is given, or fails."""

    name: str = "heard"
    works: bool = True
    messages: list[Message] = field(default_factory=list)

    def send(self, message: Message) -> None:
        if not self.works:
            raise ArchiverError("it does not work")
        self.messages.append(message)

    def take(self) -> list[tuple[str, tuple[str, ...]]]:
        found: list[tuple[str, tuple[str, ...]]] = [(message.event, message.lines) for message in self.messages]
        self.messages.clear()
        return found


ALL = frozenset(("failure", "overdue", "recovery"))


def subscribed(channels: Sequence[Channel], on: frozenset[str] = ALL) -> list[Subscription]:
    return [Subscription(channel, on) for channel in channels]


def say(
    directory: Path,
    channels: Sequence[Channel],
    *troubles: Trouble,
    on: frozenset[str] = ALL,
    done: str | None = None,
    listener: Listener = ignore,
) -> Told:
    return deliver(
        "home",
        troubles,
        subscribed(channels, on),
        str(directory),
        done=done,
        clock=Fixed(),
        listener=listener,
    )


def test_once_then_over(tmp_path: Path) -> None:
    heard = Heard()
    assert say(tmp_path, [heard]).items == () and not (tmp_path / SAID).exists()
    assert len(say(tmp_path, [heard], FULL).items) == 1
    assert heard.take() == [("failure", (FULL.text, "more: archiver job status home"))]
    for _ in range(3):
        assert say(tmp_path, [heard], FULL).items == () and heard.take() == []
    say(tmp_path, [heard], FULL, STALE)
    assert heard.take() == [("overdue", (STALE.text, "more: archiver job status home"))]
    say(tmp_path, [heard], STALE)
    (over,) = heard.take()
    assert over[0] == "recovery" and over[1][0].startswith(f"over: {FULL.text} (since 2023-07-2")
    say(tmp_path, [heard], CRASH, STALE)
    assert heard.take() == [("failure", (CRASH.text, "more: archiver job status home"))]
    say(tmp_path, [heard], FULL, STALE)
    assert [line.partition(" (")[0] for line in heard.take()[0][1]][:2] == [FULL.text, f"over: {CRASH.text}"]
    say(tmp_path, [heard])
    assert [line.partition(" (")[0] for line in heard.take()[0][1]] == [f"over: {FULL.text}", f"over: {STALE.text}"]
    assert say(tmp_path, [heard]).items == ()
    assert json.loads((tmp_path / SAID).read_bytes()) == {"schema": 1, "channels": {"heard": {}}}


def test_one_message_tells_all(tmp_path: Path) -> None:
    heard = Heard()
    say(tmp_path, [heard], STALE, HELD, FULL)
    assert [message.subject for message in heard.messages] == [f"archiver: home on {os.uname().nodename} failed"]
    assert heard.take()[0][1] == (FULL.text, HELD.text, STALE.text, "more: archiver job status home")


def test_channel_that_fails_is_reported_and_told_later(tmp_path: Path) -> None:
    good, bad, events = Heard("good"), Heard("bad", works=False), list[Event]()
    told = say(tmp_path, [bad, good], FULL, listener=events.append)
    assert told.as_json() == {
        "schema": 1,
        "items": [
            {"channel": "bad", "event": "failure", "reason": "it does not work"},
            {"channel": "good", "event": "failure", "reason": None},
        ],
    }
    assert [item.channel for item in told.failed] == ["bad"]
    assert "nobody was told by bad: it does not work" in str(events)
    good.take()
    bad.works = True
    say(tmp_path, [bad, good], FULL)
    assert len(bad.take()) == 1 and good.take() == []
    bad.works = False
    say(tmp_path, [bad, good])
    assert [event for event, _ in good.take()] == ["recovery"]
    bad.works = True
    say(tmp_path, [bad, good])
    assert [event for event, _ in bad.take()] == ["recovery"] and good.take() == []


def test_back_before_it_was_said_that_it_is_over(tmp_path: Path) -> None:
    heard = Heard()
    say(tmp_path, [heard], FULL)
    heard.take()
    heard.works = False
    say(tmp_path, [heard])
    heard.works = True
    say(tmp_path, [heard], FULL)
    assert heard.take() == []  # as far as it told, it was never over


def test_channel_taken_away_owes_nothing(tmp_path: Path) -> None:
    say(tmp_path, [Heard("old")], FULL)
    say(tmp_path, [Heard("new")], STALE)
    assert json.loads((tmp_path / SAID).read_bytes())["channels"].keys() == {"new"}


def test_nobody_hears_that_something_is_over_of_which_nobody_heard(tmp_path: Path) -> None:
    heard = Heard(works=False)
    say(tmp_path, [heard], FULL)
    heard.works = True
    assert say(tmp_path, [heard]).items == ()


@pytest.mark.parametrize("contents", [b"", b"{}", b"[]", b"\xff", b'{"channels": {"a": {"b": 1}}}', b"[" * 100_000])
def test_damaged_memory_is_told_again(tmp_path: Path, contents: bytes) -> None:
    heard, events = Heard(), list[Event]()
    (tmp_path / SAID).write_bytes(contents)
    say(tmp_path, [heard], FULL, listener=events.append)
    assert len(heard.take()) == 1 and "is damaged" in str(events)
    say(tmp_path, [heard], FULL)
    assert heard.take() == []


def test_memory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    heard, events = Heard(), list[Event]()
    say(tmp_path / "file", [heard], FULL, listener=events.append)
    assert len(heard.take()) == 1 and "may be told again" in str(events)


KNOWN = [FULL, CRASH, STALE, HELD]
NIGHTS = some.lists(some.tuples(some.sets(some.sampled_from(KNOWN)), some.booleans(), some.booleans()), max_size=12)


@settings(max_examples=60, deadline=None)
@given(nights=NIGHTS)
def test_each_channel_tells_every_problem_once(
    nights: list[tuple[set[Trouble], bool, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever comes and goes, and whichever channel fails: between two news of a topic it has changed."""
    directory = tmp_path_factory.mktemp("said")
    channels = [Heard("one"), Heard("two")]
    believed: list[set[Trouble]] = [set(), set()]
    for troubles, *works in nights:
        for channel, does in zip(channels, works, strict=True):
            channel.works = does
        say(directory, channels, *troubles)
        for channel, belief in zip(channels, believed, strict=True):
            lines = [line for _, message in channel.take() for line in message]
            if not channel.works:
                assert lines == []
                continue
            assert sum(line.startswith("over: ") for line in lines) == len(belief - troubles)
            said = [line for line in lines if not line.startswith(("over: ", "more: "))]
            assert sorted(said) == sorted(trouble.text for trouble in troubles - belief)
            belief.clear()
            belief.update(troubles)


def test_only_what_a_channel_is_for(tmp_path: Path) -> None:
    heard = Heard()
    only = frozenset(("overdue", "success"))
    say(tmp_path, [heard], FULL, HELD, on=only, done="never")
    assert [event for event, _ in heard.take()] == ["success"]
    say(tmp_path, [heard], FULL, STALE, on=only)
    assert heard.take() == [("overdue", (STALE.text, "more: archiver job status home"))]
    say(tmp_path, [heard], on=only)
    assert heard.take() == []
    say(tmp_path, [heard], STALE, on=only)  # it was over meanwhile
    assert [event for event, _ in heard.take()] == ["overdue"]
    for _ in range(2):
        say(tmp_path, [heard], STALE, on=only, done="all is saved")
        assert heard.take() == [("success", ("all is saved",))]
    say(tmp_path, [heard], FULL, done="all is saved")
    assert [line.partition(" (")[0] for line in heard.take()[0][1]][:1] == [FULL.text]


def test_said_survives_the_process(tmp_path: Path) -> None:
    memory = Memory()
    memory.said("one", [FULL], is_all=True)
    memory.write(str(tmp_path / "below" / SAID), Disk())
    assert Memory.read(str(tmp_path / "below" / SAID), ignore) == memory
    assert (tmp_path / "below" / SAID).stat().st_mode & 0o777 == 0o600


# -- the channels ----------------------------------------------------------------------------------------------------

MESSAGE = Message("home", "laptop", 1_700_000_000, "failure", ("backup: the disk <b>is</b> full", "Zeit: früh"))


def script(place: Path, text: str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"#!/bin/sh\n{text}\n")
    place.chmod(0o755)
    return place


def test_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = script(tmp_path / "sendmail", f'echo "$@" > {tmp_path}/arguments; cat > {tmp_path}/mail')
    monkeypatch.setattr(channels_module, "_SENDMAIL", ("/absent", str(program)))
    Mail(("me@example.org", "root")).send(MESSAGE)
    assert (tmp_path / "arguments").read_text() == "-oi -t\n"
    mail = message_from_bytes((tmp_path / "mail").read_bytes(), policy=default)
    assert mail["To"] == "me@example.org, root" and mail["Subject"] == "archiver: home on laptop failed"
    assert mail["Auto-Submitted"] == "auto-generated" and "Nov 2023" in mail["Date"]
    assert mail.get_content() == "backup: the disk <b>is</b> full\nZeit: früh\n"


def test_mail_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = script(tmp_path / "sendmail", "cat > /dev/null; echo no such user >&2; exit 67")
    monkeypatch.setattr(channels_module, "_SENDMAIL", (str(program),))
    with pytest.raises(ArchiverError, match="sendmail ended with exit code 67: no such user"):
        Mail(("nobody",)).send(MESSAGE)
    monkeypatch.setattr(channels_module, "_SENDMAIL", ())
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ArchiverError, match="there is no sendmail"):
        Mail(("nobody",)).send(MESSAGE)


@pytest.mark.parametrize("text", ["", "-oQ/tmp", "a b", "me@example.org\nBcc: all", "a,b", "me@", "é@x"])
def test_bad_address(text: str) -> None:
    with pytest.raises(UsageError):
        check_address(text)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_PASSWORD_FILE", "secret")
    line = f"cd {tmp_path}; cat > document; env > told"
    Command(line).send(MESSAGE)
    document = json.loads((tmp_path / "document").read_bytes())
    assert document.keys() == {"schema", "event", "job", "host", "time", "subject", "text", "items"}
    told = (tmp_path / "told").read_text()
    assert "ARCHIVER_EVENT=failure\n" in told and "ARCHIVER_JOB=home\n" in told
    assert "ARCHIVER_TEXT=backup: the disk <b>is</b> full\nZeit" in told and "PASSWORD" not in told
    assert line not in Command(line).name and Command(line).name != Command(line + " ").name


def test_command_without_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ArchiverError, match="was not done after 1 seconds"):
        run_program(f"sleep 60 & echo $! > {tmp_path}/pid; wait", "it", seconds=1)
    assert time.monotonic() - started < 30
    pid = (tmp_path / "pid").read_text().strip()
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("it lives on")


def test_command_that_leaves_something_behind_is_not_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()
    run_program(f"sleep 60 & echo $! > {tmp_path}/pid", "it", seconds=30)
    with pytest.raises(ArchiverError, match="it ended with exit code 7: why"):
        run_program(f"sleep 60 & echo $! >> {tmp_path}/pid; echo why >&2; exit 7", "it", seconds=30)
    assert time.monotonic() - started < 20
    for pid in (tmp_path / "pid").read_text().split():
        os.kill(int(pid), signal.SIGKILL)


def test_command_that_says_too_much_takes_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchiverError, match=r"it ended with exit code 3: (a )+a? ?$") as raised:
        run_program("yes a | head -c 200000000 >&2; exit 3", "it", b"x" * 1_000_000, seconds=60)
    assert len(str(raised.value)) < 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_desktop_by_notify_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = tmp_path / "shown"
    script(tmp_path / "bin/notify-send", f'printf "%s|" "$@" "$DBUS_SESSION_BUS_ADDRESS" >> {shown}')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path=/bus")
    Desktop().send(MESSAGE)
    assert shown.read_text() == (
        "--urgency=critical|--app-name=archiver|--|archiver: home on laptop failed|"
        "backup: the disk &lt;b&gt;is&lt;/b&gt; full\nZeit: früh|unix:path=/bus|"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_desktop_of_everybody_who_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root tells each person as that person."""
    tmp_path.chmod(0o755)
    shown = tmp_path / "shown"
    shown.mkdir()
    shown.chmod(0o777)
    script(tmp_path / "bin/notify-send", f'echo "$DBUS_SESSION_BUS_ADDRESS" > {shown}/$(id -u)')
    for name in ("65534", "123", "999999", "not"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "bus").touch()
    for place in (tmp_path, *tmp_path.parents[:3]):
        place.chmod(place.stat().st_mode | 0o055)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setattr(desktop_module, "RUNTIME_DIRECTORIES", str(tmp_path / "run"))
    Desktop().send(MESSAGE)
    assert [(each.name, each.read_text()) for each in shown.iterdir()] == [
        ("65534", f"unix:path={tmp_path}/run/65534/bus\n")
    ]


def test_nobody_at_the_desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "bin/notify-send", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(desktop_module, "RUNTIME_DIRECTORIES", str(tmp_path / "absent"))
    with pytest.raises(ArchiverError, match="nobody is logged in"):
        Desktop().send(MESSAGE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArchiverError, match="no program for notifications"):
        Desktop().send(MESSAGE)


needs_bus = pytest.mark.skipif(
    any(
        subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True).returncode
        for name in ("dbus-daemon", "dbus-test-tool", "busctl")
    ),
    reason="needs dbus and busctl",
)


@needs_bus
def test_desktop_by_busctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a real bus, where something listens by that name."""
    address = f"unix:path={tmp_path}/bus"
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    monkeypatch.setattr("shutil.which", lambda name: None if name == "notify-send" else f"/usr/bin/{name}")
    with pytest.raises(ArchiverError, match="busctl ended with exit code 1"):
        Desktop().send(MESSAGE)
    daemon = subprocess.Popen(["dbus-daemon", "--session", "--nofork", f"--address={address}"])
    try:
        wait_for(lambda: (tmp_path / "bus").exists())
        with open(tmp_path / "seen", "wb") as seen:
            monitor = subprocess.Popen(["dbus-monitor", "--address", address], stdout=seen)
            wait_for(lambda: (tmp_path / "seen").read_bytes())  # it sees what comes now
            echo = subprocess.Popen(["dbus-test-tool", "echo", "--name=org.freedesktop.Notifications"])
            try:
                asked = ["busctl", f"--address={address}", "status", "org.freedesktop.Notifications"]
                wait_for(lambda: not subprocess.run(asked, capture_output=True).returncode)
                Desktop().send(MESSAGE)
                wait_for(lambda: b"member=Notify" in (tmp_path / "seen").read_bytes())
            finally:
                for each in (echo, monitor):
                    each.kill()
                    each.wait()
    finally:
        daemon.kill()
        daemon.wait()
    text = (tmp_path / "seen").read_text()
    assert 'string "archiver: home on laptop failed"' in text and "&lt;b&gt;is" in text and "byte 2" in text


def wait_for(true: Any) -> None:
    for _ in range(2400):
        if true():
            return
        time.sleep(0.025)
    raise AssertionError("it did not come")


@dataclass
class Server:
    url: str
    requests: list[tuple[str, str, bytes]]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    requests: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            requests.append((self.command, self.path, self.rfile.read(length)))
            if self.path == "/slow":
                time.sleep(3)
            if self.path == "/nonsense":
                self.wfile.write(b"nonsense\r\n\r\n")
                return
            codes = {"/refuse": 403, "/away": 302, "/moved": 301, "/other": 303, "/file": 302}
            self.send_response(codes.get(self.path.partition("?")[0], 204))
            if self.path in ("/away", "/moved", "/other", "/file"):
                self.send_header("Location", "/there" if self.path != "/file" else "ftp://localhost/etc/passwd")
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Server(f"http://127.0.0.1:{found.server_port}", requests)
    found.shutdown()
    thread.join()
    found.server_close()


def test_webhook(server: Server) -> None:
    Webhook(f"{server.url}/hook?token=secret").send(MESSAGE)
    ((method, path, data),) = server.requests
    assert (method, path) == ("POST", "/hook?token=secret") and json.loads(data) == MESSAGE.as_json()
    assert MESSAGE.as_json()["text"].startswith("archiver: home on laptop failed\nbackup: ")


def test_heartbeat(server: Server) -> None:
    events: list[Event] = []
    assert beat(f"{server.url}/away", events.append).reason is None
    assert [(method, path) for method, path, _ in server.requests] == [("GET", "/away"), ("GET", "/there")]
    failed = beat(f"{server.url}/refuse?token=secret", events.append)
    assert failed.reason == "127.0.0.1: answered 403" and len(events) == 1
    assert "secret" not in str(failed) + str(events)


def test_after_a_run(server: Server, tmp_path: Path) -> None:
    """The heartbeat is asked for after runs as long as nothing is wrong; the good end is told to who wants it."""
    path = tmp_path / "home.toml"
    path.write_text(
        f'store = "/s"\nsources = ["/x"]\n[[notify]]\nkind = "heartbeat"\nto = "{server.url}/beat"\n'
        f'[[notify]]\nkind = "webhook"\nto = "{server.url}/hook"\non = ["failure", "success"]\n'
    )
    profile = load("home", str(path))
    good, absent = (Run("home", 1, 0, "done", 9, code) for code in (0, 13))

    def asked(run: Run | None, *troubles: Trouble) -> list[tuple[str, str]]:
        server.requests.clear()
        standing = Standing("home", run, False, (), troubles)
        told = tell(profile, standing, run, str(tmp_path), ignore, Fixed())
        assert not told.failed
        return [(path, json.loads(data)["event"] if data else "") for _, path, data in server.requests]

    assert asked(good) == [("/hook", "success"), ("/beat", "")]
    assert asked(absent) == [("/beat", "")]  # deferred is no failure
    assert asked(None) == []
    assert asked(good, FULL) == [("/hook", "failure")]
    assert asked(good, FULL) == asked(None, STALE) == []
    assert asked(good) == [("/hook", "success"), ("/beat", "")]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/refuse", "answered 403"),
        ("/nonsense", "no usable answer"),
        ("/file", "answered 302"),
        ("/away", "answered 302"),  # browsers ask there without the message
        ("/moved", "answered 301"),
        ("/slow", "does not answer"),
    ],
)
def test_webhook_fails(server: Server, monkeypatch: pytest.MonkeyPatch, path: str, reason: str) -> None:
    monkeypatch.setattr(web, "_SECONDS_IN_ALL", 0.5 if path == "/slow" else 20)
    with pytest.raises(ArchiverError, match=reason) as raised:
        Webhook(server.url + path).send(MESSAGE)
    assert path not in str(raised.value)
    assert len(server.requests) == 1


def test_webhook_that_has_taken_it_and_shows_another_page(server: Server) -> None:
    Webhook(f"{server.url}/other").send(MESSAGE)
    assert [(method, path) for method, path, _ in server.requests] == [("POST", "/other"), ("GET", "/there")]


def test_webhook_to_nobody() -> None:
    with pytest.raises(ArchiverError, match=r"127\.0\.0\.1: connection refused"):
        Webhook("http://127.0.0.1:1/token").send(MESSAGE)
    assert "token" not in Webhook("http://127.0.0.1:1/token").name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "file:///etc/passwd",
        "ftp://a/b",
        "http://",
        "http://a:x/",
        "http://a:0/",
        "https://a/ b",
        "https://a/\n",
        "https://u:p@a/",
        "http://[1/",
        "https://é/",
    ],
)
def test_bad_url(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        check_url(text)
    assert text == "" or "://" not in str(raised.value)
    assert check_url("https://example.org/x?y=z") == "https://example.org/x?y=z"


def test_try_out(tmp_path: Path) -> None:
    heard = Heard()
    told = try_out("home", subscribed([heard, Heard("bad", works=False)]), clock=Fixed(), listener=ignore)
    assert [item.reason for item in told.items] == [None, "it does not work"]
    assert heard.take()[0][0] == "test"


def test_imports_little() -> None:
    """A run that has nothing to tell does not pay for the web or mail."""
    heavy = "[n for n in ('urllib.request', 'email', 'ssl') if n in sys.modules]"
    code = f"import sys, archiver.jobs.notify.deliver; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
