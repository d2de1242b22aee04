"""Who is told by job run and job status, of what and how often; and that no name of an encrypted backup is in it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from archiver.cli.main import run
from archiver.jobs import steps
from archiver.jobs.history import History, state_directory
from tests.cli.command import BUG, ROOT, ask, call, start
from tests.golden_store import write_key

pytestmark = pytest.mark.in_memory

SECRET = "private-diary"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "files" / SECRET).mkdir(parents=True)
    (tmp_path / "files" / SECRET / f"{SECRET}.txt").write_bytes(os.urandom(5000))
    ask("init", tmp_path / "store")
    write(tmp_path)
    return tmp_path


def write(place: Path, more: str = "") -> None:
    profile = place / ".xdg/config/archiver/home.toml"
    profile.parent.mkdir(parents=True, exist_ok=True)
    profile.write_text(
        f'store = "{place}/store"\nsources = ["{place}/files"]\n[keep]\nlast = 9\n'
        f'[[notify]]\nkind = "command"\nto = "cat >> {place}/told; echo >> {place}/told"\n{more}'
    )


def told(place: Path) -> list[tuple[str, str]]:
    """What came since the last look: the event and its first line."""
    path = place / "told"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.write_text("")
    return [(message["event"], message["items"][0]) for message in found]


def test_failure_and_recovery_are_told_once(place: Path) -> None:
    assert call("job", "run", "home").code == 0 and told(place) == []
    (place / "files").rename(place / "away")
    for count in (1, 0, 0):
        assert call("job", "run", "home").code not in (0, 3, BUG)
        assert [event for event, _ in told(place)] == ["failure"] * count
        assert call("job", "status", "home").code in (0, 31) and told(place) == []
    (place / "away").rename(place / "files")
    assert call("job", "run", "home").code == 0
    assert [(event, line.startswith("over: ")) for event, line in told(place)] == [("recovery", True)]
    assert call("job", "run", "home").code == 0 and told(place) == []


def test_overdue_is_told_when_nothing_runs(place: Path) -> None:
    assert call("job", "run", "home").code == 0
    write(place, '[max-age]\nsnapshot = "1s"\n')
    runs = sorted((place / ".xdg/state/archiver/jobs/home/runs").iterdir())
    for path in runs:
        document = json.loads(path.read_bytes())
        for step in document["items"]:
            step["began"] -= 86400
        path.write_text(json.dumps(document))
    for count in (1, 0):
        assert call("job", "status", "home").code == 31
        assert [event for event, _ in told(place)] == ["overdue"] * count


def test_crash_is_told_by_the_next_run(place: Path) -> None:
    history = History(state_directory(os.environ, "home"))
    history.lock()
    history.put(history.begin())
    assert call("job", "status", "home").code == 0 and told(place) == []  # it goes on, as far as one can see
    history.close()
    assert call("job", "run", "home").code == 0
    events = [event for event, _ in told(place)]
    assert events == ["failure", "recovery"]
    assert call("job", "run", "home").code == 0 and told(place) == []


def test_a_bug_of_ours_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr("archiver.jobs.steps.collect", bug)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        call("job", "run", "home")
    assert [event for event, _ in told(place)] == ["failure"]


def test_killed_run_is_told_at_once(place: Path) -> None:
    """systemd starts job status when the service failed."""
    (place / "wait").touch()
    write(
        place,
        f'[[hook]]\nwhen = "before"\ncommand = "touch {place}/begun; while [ -e {place}/wait ]; do sleep 0.1; done"\n',
    )
    running = start("job", "run", "home", cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        for _ in range(2400):
            if (place / "begun").exists():  # a hook that is just being started has the run's lock for a moment
                break
            time.sleep(0.025)
    finally:
        running.kill()
        (place / "wait").unlink()
        running.communicate()
    for count in (1, 0):
        call("job", "status", "home")
        assert [event for event, _ in told(place)] == ["failure"] * count
    write(place)
    assert call("job", "run", "home").code == 0
    assert [event for event, _ in told(place)] == ["recovery"]


@pytest.mark.parametrize("command", ["run", "status"])
def test_profile_that_is_wrong_or_gone(place: Path, command: str) -> None:
    """The last good one said who is to be told."""
    profile = place / ".xdg/config/archiver/home.toml"
    profile.write_text("store = 5\n")
    assert call("job", command, "home").code == 2 and told(place) == []  # there was none yet
    write(place)
    assert call("job", "run", "home").code == 0
    (place / "files").rename(place / "away")
    assert call("job", "run", "home").code == 1
    (place / "away").rename(place / "files")
    assert [event for event, _ in told(place)] == ["failure"]
    good = profile.read_text()
    profile.write_text(good + f"exclude = 5 # {SECRET}\n")
    for lines in (["the job cannot be run, its profile is wrong or gone: archiver job check home"], []):
        assert call("job", command, "home").code == 2
        assert told(place) == [("failure", line) for line in lines]
    profile.unlink()
    assert call("job", command, "home").code == 10 and told(place) == []
    write(place)
    assert call("job", "run", "home").code == 0
    assert [event for event, _ in told(place)] == ["recovery"]
    assert (place / ".xdg/state/archiver/jobs/home/channels.json").stat().st_mode & 0o777 == 0o600


def test_channels_that_were_taken_away_are_not_told(place: Path) -> None:
    assert call("job", "run", "home").code == 0
    profile = place / ".xdg/config/archiver/home.toml"
    profile.write_text(profile.read_text().partition("[[notify]]")[0])
    assert call("job", "run", "home").code == 0
    profile.write_text("store = 5\n")
    assert call("job", "run", "home").code == 2 and told(place) == []


def test_nobody_can_be_told(place: Path) -> None:
    """That is no failure of the run, and it is said."""
    write(place, '[[notify]]\nkind = "command"\nto = "exit 3"\non = ["success"]\n')
    done = call("job", "run", "home", "--json")
    assert done.code == 0 and done.document["exit_code"] == 0
    assert "nobody was told by command" in done.err and "exit code 3" in done.err


def test_no_name_of_an_encrypted_backup(place: Path) -> None:
    """Not in what is told, in the job's state or in reports, though its files are damaged and a hook fails."""
    keyfile = write_key(place / "key.json")
    write(place, f'[key]\nfile = "{keyfile}"\n[verify]\nevery = "1s"\n[drill]\nevery = "1s"\n')
    assert call("job", "run", "home").code == 0
    (place / "files" / SECRET / f"{SECRET}-2.txt").write_bytes(os.urandom(4000))
    assert call("job", "run", "home").code == 0
    for chunk in (place / "store/.chunks").glob("*/*"):
        data = bytearray(chunk.read_bytes())
        data[-1] ^= 1
        chunk.write_bytes(data)
    done = call("job", "run", "home", "--json", "--only", "verify", "--only", "drill")
    assert done.code == 20, done.err
    reports = [call("job", "report", "home", "-").out, json.dumps(ask("job", "report", "home"))]
    reports.append(call("job", "report", "home", "-", "--run", "2").out)
    assert "are encrypted" in reports[0]
    state = place / ".xdg/state/archiver/jobs/home"
    written = [path.read_text() for path in state.rglob("*") if path.is_file()] + [(place / "told").read_text()]
    assert told(place) and len(written) > 3
    for text in (*reports, *written, done.out):
        assert SECRET not in text


def test_a_run_does_not_wait_for_who_tells(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer somebody who looks must not keep a run from beginning."""
    history = History(state_directory(os.environ, "home"))
    monkeypatch.setattr("archiver.jobs.history._TELLING", 0.0)
    with history.telling():
        assert not history.is_running()
        done = call("job", "run", "home")
    assert done.code == 0 and "nobody was told how the job stands" in done.err
    assert call("job", "status", "home").err == ""


def test_if_due_while_it_is_running(place: Path) -> None:
    """cron asks each hour, and would send a mail about it."""
    write(place, '[schedule]\nat = "00:00"\n')
    history = History(state_directory(os.environ, "home"))
    history.lock()
    assert call("job", "run", "home").code == 11
    assert ask("job", "run", "home", "--if-due")["items"] == []
    history.close()


@pytest.mark.parametrize("since", [(), ("--if-due",)])
def test_if_due(place: Path, since: tuple[str, ...]) -> None:
    assert call("job", "run", "home", "--if-due").code == 2  # there is no schedule
    write(place, '[schedule]\nat = ["00:00", "12:00"]\n')
    assert call("job", "run", "home", "--if-due").code == 0
    runs = place / ".xdg/state/archiver/jobs/home/runs"
    assert len(list(runs.iterdir())) == 1
    document = ask("job", "run", "home", *since)
    assert len(list(runs.iterdir())) == (1 if since else 2)
    if since:
        assert document == {"schema": 1, "job": "home", "dry_run": False, "items": []}


@pytest.mark.parametrize(
    ("kind", "to"),
    [("mail", "-oQ/tmp"), ("mail", "me\\nBcc: you"), ("webhook", "https://u:secret@h/"), ("heartbeat", "http://h:0/")],
)
def test_addresses_that_are_none(place: Path, kind: str, to: str) -> None:
    write(place, f'[[notify]]\nkind = "{kind}"\nto = "{to}"\n')
    done = call("job", "run", "home", "--json")
    assert done.code == 2 and "notify[1].to: " in done.error["message"] and "secret" not in done.error["message"]


@pytest.mark.parametrize("command", ["run", "status"])
def test_state_that_cannot_be_kept_or_read_is_told(place: Path, command: str) -> None:
    """A newer archiver's records may say what must not be passed over; a directory that is none takes no record."""
    assert call("job", "run", "home").code == 0
    runs = place / ".xdg/state/archiver/jobs/home/runs"
    record = runs / "00000001.json"
    good = record.read_text()
    record.write_text(good.replace('"schema": 1', '"schema": 2'))
    for lines in (["the job cannot be run: the history of the job home was written by a newer archiver"], []):
        assert call("job", command, "home").code == 50
        assert [line for _, line in told(place)] == lines
    assert call("job", "ack", "home").code == call("job", "report", "home", place / "r.html").code == 50
    assert call("job", "list").code == 0
    record.write_text(good)
    assert call("job", "status", "home").code == 0
    assert [event for event, _ in told(place)] == ["recovery"]
    runs.parent.rename(place / "elsewhere")
    runs.parent.write_text("")
    write(place, '[max-age]\nsnapshot = "1s"\n')
    os.utime(place / ".xdg/config/archiver/home.toml", (0, 0))
    done = call("job", command, "home")
    assert done.code == (1 if command == "run" else 31)
    ((_, line),) = told(place)
    assert line.startswith("the job cannot be run: cannot make" if command == "run" else "there was never a snapshot")


def test_a_history_that_cannot_be_read_is_told_by_who_asks_whether_a_run_is_due(place: Path) -> None:
    """cron and systemd only ever ask that."""
    write(place, '[schedule]\nat = "00:00"\n')
    assert call("job", "run", "home").code == 0
    record = place / ".xdg/state/archiver/jobs/home/runs/00000001.json"
    record.write_text(record.read_text().replace('"schema": 1', '"schema": 2'))
    for count in (1, 0):
        assert call("job", "run", "home", "--if-due").code == 50
        assert [event for event, _ in told(place)] == ["failure"] * count


@pytest.mark.parametrize("number", ["1e999", "1e18", "-1e15", "NaN", '"1"', "[]"])
def test_records_with_numbers_that_were_never_recorded(place: Path, number: str) -> None:
    """They are damaged, and as if they were not there."""
    assert call("job", "run", "home").code == 0
    record = place / ".xdg/state/archiver/jobs/home/runs/00000001.json"
    good = json.loads(record.read_text())
    began = good["began"]
    for key in ("began", "ended", "exit_code", "due", "run"):
        record.write_text(json.dumps(good | {key: "HERE"}).replace('"HERE"', number))
        (item,) = ask("job", "list")["items"]
        assert item["state"] == "never run" and item["last_run"] is None
    steps = [step | {"duration_s": "HERE"} for step in good["items"]]
    record.write_text(json.dumps(good | {"items": steps}).replace('"HERE"', number))
    assert ask("job", "list")["items"][0]["last_run"] is None
    for command in (["status"], ["report", "--json"], ["run"], ["ack"]):
        assert call("job", command[0], "home", *command[1:]).code == 0
    assert began


def test_bug_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the run itself: cron has no OnFailure."""

    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(steps, "backup", broken)
    assert run(["job", "run", "home"], as_json=False) == BUG
    assert told(place) == [("failure", f"backup of {place}/store: a bug of archiver's: RuntimeError")]
