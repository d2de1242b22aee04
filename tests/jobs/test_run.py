"""Running a job: the order of its steps, what fails and what goes on, hooks, targets that are absent, the record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from archiver.core.disk import no_space
from archiver.errors import ArchiverError, Locked, TooNew, worst, worst_of
from archiver.jobs import steps as steps_module
from archiver.jobs.history import History, Run, StepResult
from archiver.jobs.run import STALE
from archiver.store.store import Store
from tests.cli.command import ROOT, ask, call
from tests.jobs.jobs import DAY, NIGHT, Job, states, the_step
from tests.stores import chunk_files
from tests.test_readme import documented, inner_members

KEEP = "[keep]\nlast = 2\n"


def hook(when: str, command: str, more: str = "") -> str:
    return f"[[hook]]\nwhen = '{when}'\ncommand = '''{command}'''\n{more}\n"


def test_a_whole_night(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    Store.create(str(copy))
    job = Job(tmp_path, f"{KEEP}[drill]\n[[sync]]\ntarget = '{copy}'\n")
    run = job.run()
    assert [step.name for step in run.steps] == ["backup", "guard", "prune", "gc", "verify", "sync", "drill"]
    assert set(states(run).values()) == {"ok"} and run.exit_code == 0
    assert job.snapshots() == job.snapshots(copy) == ["host/" + the_step(run, "backup").text.split("/", 1)[1]]
    assert the_step(run, "verify").figures["errors"] == 0
    assert the_step(run, "drill").figures["compared"] == 3
    assert job.history.runs() == [run]
    assert job.troubles() == [] and not job.standing.is_stale


def test_steps_are_done_when_they_are_due(tmp_path: Path) -> None:
    job = Job(tmp_path, KEEP + "[gc]\nevery = '3d'\n[verify]\nevery = '2d'\n")
    done = []
    for _ in range(7):
        run = job.run()
        done.append([step.name for step in run.steps if step.name in ("gc", "verify")])
        job.clock.time += DAY + 600 - 1200 * (len(done) % 2)  # not exactly a day each time
    assert done == [["gc", "verify"], [], ["verify"], ["gc"], ["verify"], [], ["gc", "verify"]]
    assert len(job.snapshots()) == 3  # the last two, and the newest that was verified before the prune


def test_the_profile_is_in_the_snapshot(tmp_path: Path) -> None:
    job = Job(tmp_path, KEEP)
    job.run()
    out = tmp_path / "out"
    assert call("--store", job.store, "restore", "latest", out, "--archive", "job.conf").code == 0
    assert out.read_bytes() == job.profile.data


def test_a_failed_step_does_not_hide_the_others(tmp_path: Path) -> None:
    """The source is gone, and a chunk is damaged: both are told, all else is done."""
    job = Job(tmp_path, KEEP + "[verify]\nevery = '1h'\n")
    job.run()
    job.clock.time += DAY
    victim = max(chunk_files(job.store), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    job.source.rename(tmp_path / "elsewhere")
    run = job.run()
    assert states(run) == {"backup": "failed", "prune": "ok", "verify": "failed"}
    assert [step.exit_code for step in run.steps] == [1, 0, 20]
    assert run.exit_code == 1
    kinds = {(trouble.key, trouble.kind) for trouble in job.troubles()}
    assert kinds == {(f"failure backup {job.store}", "failure"), (f"failure verify {job.store}", "failure")}


def test_a_full_disk_does_not_keep_prune_from_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path, "[keep]\nlast = 2\n[gc]\nevery = '30d'\n")
    for _ in range(3):
        job.run()
        job.clock.time += DAY

    def full(*_: object) -> None:
        raise no_space("write", "x")

    with monkeypatch.context() as patched:
        patched.setattr(steps_module, "backup", full)
        patched.setattr(History, "put", full)  # the same disk
        run = job.run()
    assert states(run) == {"backup": "failed", "prune": "ok", "gc": "ok", "verify": "ok"}
    assert run.exit_code == 40
    assert any("cannot be recorded" in text for text in job.told)


def test_unreadable_files_are_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path, KEEP)
    (job.source / "file-000.txt").unlink()
    real = os.open

    def failing(path: object, *args: object, **more: object) -> int:
        if path == b"file-001.txt":
            raise OSError(5, os.strerror(5), path)
        return real(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", failing)
    run = job.run()
    assert (the_step(run, "backup").state, run.exit_code) == ("partial", 3)
    assert the_step(run, "backup").figures["read_errors"] == 1
    assert "file-001" not in json.dumps(run.as_json())  # a record has no names of files
    assert job.troubles() == [] and not job.standing.is_stale


def test_the_output_of_commands(tmp_path: Path) -> None:
    job = Job(tmp_path, "[stdin-from-command]\n'a.img' = 'echo one'\n'b.img' = 'printf two; exit $CODE'\n")
    run = job.run()
    assert states(run)["backup"] == "ok"
    shown = ask("--store", job.store, "files", "latest")
    assert {"a.img.fidx", "b.img.fidx"} <= {item["filename"] for item in shown["items"]}
    os.environ["CODE"] = "3"
    try:
        run = job.run()
    finally:
        del os.environ["CODE"]
    assert states(run)["backup"] == "failed" and run.exit_code == 1
    assert the_step(run, "backup").text == "the command ended with exit code 3, so nothing is saved: b.img"
    assert len(job.snapshots()) == 1


# Hooks.


def test_hooks_in_their_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    line = f'echo $ARCHIVER_JOB $ARCHIVER_RUN {{}} $ARCHIVER_EXIT_CODE >> {log}; test -z "$ARCHIVER_PASSWORD"'
    hooks = [hook(when, line.format(when)) for when in ("finally", "after", "on-failure", "before", "before")]
    job = Job(tmp_path, "".join(hooks))
    run = job.run(environment={**os.environ, "ARCHIVER_PASSWORD": "secret"})
    assert run.exit_code == 0
    assert log.read_text().splitlines() == [f"nightly 1 {when} 0" for when in ("before", "before", "after", "finally")]
    job.source.rename(tmp_path / "elsewhere")
    log.unlink()
    assert job.run().exit_code == 1
    lines = [f"nightly 2 before {code}" for code in (0, 0)] + ["nightly 2 on-failure 1", "nightly 2 finally 1"]
    assert log.read_text().splitlines() == lines


def test_a_hook_that_fails_the_run(tmp_path: Path) -> None:
    job = Job(tmp_path, hook("before", "exit 7", "required = true") + hook("finally", "exit 1"))
    run = job.run()
    assert states(run) == {
        "before 1": "failed",
        "backup": "skipped",
        "guard": "skipped",
        "gc": "skipped",
        "verify": "skipped",
        "finally 1": "failed",
    }
    assert run.exit_code == 1 and job.snapshots() == []
    assert run.steps[0].text == "the hook ended with exit code 7"
    job.say(hook("before", "exit 7"))
    run = job.run()
    assert run.exit_code == 0 and len(job.snapshots()) == 1
    assert [trouble.key for trouble in job.troubles()] == ["failure hook before 1"]


def test_hooks_that_hang_or_die(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    job = Job(
        tmp_path, hook("before", f"sleep 1000 & echo $! > {pid}; wait", "timeout = '1s'") + hook("after", "kill $$")
    )
    run = job.run("backup")
    assert [step.text for step in run.steps_named("hook")] == [
        "the hook took longer than 1 seconds and was ended",
        "the hook was ended by signal 15",
    ]
    for _ in range(100):
        if not Path(f"/proc/{pid.read_text().strip()}").exists():
            break
        time.sleep(0.02)
    else:
        pytest.fail("what the hook has started lives on")


# Targets that are not there.


def test_an_absent_target_is_deferred_until_it_is_overdue(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    job = Job(tmp_path, f"[[sync]]\ntarget = '{copy}'\nevery = '1h'\nmax-age = '2d'\n")
    run = job.run()
    assert (the_step(run, "sync").state, run.exit_code) == ("deferred", 13)
    assert job.troubles() == []
    Store.create(str(copy))
    job.clock.time += DAY
    assert job.run().exit_code == 0
    copy.rename(tmp_path / "drawer")
    copy.mkdir()  # the mount point without its drive
    codes = []
    for _ in range(4):
        job.clock.time += DAY
        codes.append(job.run().exit_code)
    assert codes == [13, 13, STALE, STALE]
    (trouble,) = job.troubles()
    assert (trouble.key, trouble.since) == (f"overdue sync {copy}", NIGHT + 3 * DAY)
    copy.rmdir()
    (tmp_path / "drawer").rename(copy)
    assert job.run().exit_code == 0 and job.troubles() == []
    assert job.snapshots() == job.snapshots(copy)


def test_an_absent_store_defers_everything(tmp_path: Path) -> None:
    job = Job(tmp_path, KEEP)
    job.run()
    job.store.rename(tmp_path / "drawer")
    job.clock.time += 2 * DAY
    run = job.run()
    assert set(states(run).values()) == {"deferred"} and run.exit_code == 13
    job.clock.time += 2 * DAY
    run = job.run()
    assert (the_step(run, "backup").exit_code, run.exit_code) == (STALE, STALE)


def test_a_place_that_never_was_a_store_is_an_error(tmp_path: Path) -> None:
    job = Job(tmp_path, f"[[sync]]\ntarget = '{tmp_path}/empty'\n")
    (tmp_path / "empty").mkdir()
    run = job.run()
    assert (the_step(run, "sync").state, run.exit_code) == ("failed", 10)


def test_a_store_that_has_lost_a_part_is_no_absent_drive(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert job.run().exit_code == 0
    (job.store / ".chunks").rename(job.store / ".chunks.old")
    run = job.run()
    assert (the_step(run, "backup").state, run.exit_code) == ("failed", 10)


def test_the_worst_exit_code() -> None:
    assert worst([]) == worst([0]) == 0
    assert worst([3, 31, 20, 40, 13, 1]) == 1
    assert worst([3, 31, 20, 50, 13]) == 13
    assert worst([0, 3, 31, 30]) == 30
    assert worst([3, 99]) == 99
    assert worst_of([]) is None
    first = worst_of([Locked("b"), ArchiverError("a", hint="h"), Locked("c")])
    assert isinstance(first, ArchiverError) and (str(first), first.hint) == ("a (and 2 more)", "h")


# Two at once, interrupted, crashed.


def test_one_at_a_time(tmp_path: Path) -> None:
    job = Job(tmp_path)
    history = job.history
    history.lock()
    with pytest.raises(Locked, match="running already"):
        job.run()
    assert job.standing.is_running
    assert call("job", "run", "nightly").code == 11
    history.close()
    assert not job.standing.is_running
    assert job.run().exit_code == 0


def test_interrupted(tmp_path: Path) -> None:
    """SIGTERM while a hook runs: the hook ends, the finally hook runs, the record says so, nothing is left."""
    ready, late = tmp_path / "ready", tmp_path / "late"
    job = Job(tmp_path, hook("before", f"touch {ready}; exec sleep 1000") + hook("finally", f"touch {late}"))
    command = [sys.executable, "-m", "archiver", "job", "run", "nightly", "--any-power", "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(500):
        if ready.exists():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "interrupted"
    (run,) = job.history.settled()
    assert (run.state, run.exit_code) == ("done", 130)
    assert [step.state for step in run.steps] == ["interrupted", "ok"]
    assert late.exists() and job.snapshots() == []
    assert job.troubles() == []  # who stopped it knows
    (item,) = ask("job", "list")["items"]
    assert item["state"] == "never saved"


def test_interrupted_at_its_end(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    job = Job(tmp_path, hook("finally", f"touch {ready}; exec sleep 1000"))
    command = [sys.executable, "-m", "archiver", "job", "run", "nightly", "--any-power"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(500):
        if ready.exists():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    (run,) = job.history.settled()
    assert (process.returncode, run.state, run.exit_code) == (130, "done", 130)
    assert ask("job", "list")["items"][0]["state"] == "interrupted"


def test_hooks_have_streams_though_we_have_none(tmp_path: Path) -> None:
    job = Job(tmp_path, hook("before", "echo out; echo err >&2; cat", "required = true"))
    command = f"{sys.executable} -m archiver job run nightly --any-power <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=ROOT, check=False).returncode == 0
    assert len(job.snapshots()) == 1


def test_a_crash_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path)

    def power_cut(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(steps_module, "backup", power_cut)
        patched.setattr("archiver.jobs.run._JobRun._end", power_cut)
        with pytest.raises(SystemExit):
            job.run()
    (trouble,) = job.troubles()
    assert (trouble.kind, trouble.since) == ("crash", NIGHT)
    job.run()
    assert [run.state for run in job.history.runs()] == ["done", "crashed"]
    assert job.troubles() == []


def test_a_bug_is_told_when_all_else_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(tmp_path)

    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("x")

    monkeypatch.setattr(steps_module, "collect", bug)
    with pytest.raises(ZeroDivisionError):
        job.run()
    (run,) = job.history.runs()
    assert run.exit_code == 70 and states(run)["verify"] == "ok"


# The history.


def test_history(tmp_path: Path) -> None:
    history = History(str(tmp_path / "jobs" / "x"))
    assert history.runs() == [] and history.acknowledged == 0 and not history.is_running()
    history.lock()
    step = StepResult("backup", "/s", "ok", 0, "text", NIGHT, 1.5, {"size": 3})
    made = []
    for _ in range(3):
        run = replace(history.begin(), steps=(step,), state="done", exit_code=0, ended=NIGHT)
        history.put(run)
        made.append(run)
    assert [run.number for run in made] == [1, 2, 3]
    assert history.runs() == made[::-1]
    assert Run.of(json.loads(json.dumps(made[0].as_json()))) == made[0]
    history.acknowledge(2)
    assert history.acknowledged == 2
    for text in ("", "{}", "[]", '{"schema": 0}', "[" * 100000):
        (tmp_path / "jobs" / "x" / "runs" / "00000002.json").write_text(text)
        (tmp_path / "jobs" / "x" / "ack.json").write_text(text)
        again = History(history.directory)
        assert [run.number for run in again.runs()] == [3, 1] and again.acknowledged == 0
    for name in ("runs/00000002.json", "ack.json"):
        (tmp_path / "jobs" / "x" / name).write_text('{"schema": 9}')
    with pytest.raises(TooNew, match="the history of the job x was written by a newer archiver"):
        again.runs()
    with pytest.raises(TooNew):
        print(again.acknowledged)
    history.close()


def test_a_record_of_the_future_proves_nothing(tmp_path: Path) -> None:
    """The clock was a year ahead for one night."""
    job = Job(tmp_path)
    job.clock.time += 365 * DAY
    job.run()
    job.clock.time = NIGHT + 5 * DAY
    assert job.standing.is_stale
    run = job.run("verify", "backup")
    assert run.exit_code == 0 and not job.standing.is_stale


def test_a_run_of_the_future_is_not_the_one_that_is_due(tmp_path: Path) -> None:
    """Else cron would not run the job for a year."""
    job = Job(tmp_path, "[schedule]\nat = '00:00'\n")
    job.clock.time = int(time.time()) + 365 * DAY
    job.run()
    for count in (2, 2):
        assert call("job", "run", "nightly", "--if-due").code == 0
        assert len(job.history.numbers()) == count


def test_a_snapshot_that_was_forgotten_does_not_count(tmp_path: Path) -> None:
    job = Job(tmp_path, "[max-age]\nsnapshot = '2d'\n")
    job.run()
    job.clock.time += DAY
    newest = the_step(job.run(), "backup").text
    job.clock.time += 2 * DAY - 10
    assert not job.standing.is_stale
    assert call("--store", job.store, "forget", newest).code == 0
    assert job.standing.is_stale


def test_a_job_that_never_ran_is_as_old_as_its_profile(tmp_path: Path) -> None:
    job = Job(tmp_path)
    assert call("job", "status").code == call("status").code == 0
    os.utime(job.path, (NIGHT - 4 * DAY, NIGHT - 4 * DAY))
    done = call("job", "status", "nightly")
    assert done.code == STALE and f"overdue: there was never a snapshot in {job.store}" in done.out
    assert call("status").code == call("--store", job.store, "status").code == STALE
    assert call("job", "list").lines[1].split()[:2] == ["nightly", "stale"]


def test_documents(tmp_path: Path) -> None:
    """Each has the members that README's table names, and no others."""
    job = Job(tmp_path, KEEP + "[[sync]]\ntarget = '/absent'\n")
    table = documented()

    def told(name: str, *more: str | Path, code: int = 0) -> dict[str, Any]:
        done = call(*name.split(), *more, "--json")
        assert done.code == code, done.err
        document = done.document
        assert document.keys() - {"schema"} == table[name].keys()
        for member, inner in table[name].items():
            if inner:
                assert inner_members(document[member]) == inner, (name, member)
        return document

    told("job run --dry-run", "nightly")
    assert job.snapshots() == []
    told("job run", "nightly", "--any-power", code=13)
    (item,) = told("job status")["items"]
    assert item["state"] == "good"
    assert item["ages"][0].keys() == {"step", "target", "newest", "age_s", "max_age_s", "due", "stale"}
    for name in ("job list", "job check"):
        told(name)
    told("job show", "nightly")
    told("drill", "--store", job.store)
    assert ask("job", "ack", "nightly")["items"] == []
    found = ask("--store", job.store, "status")
    assert [each["job"] for each in found["jobs"]] == ["nightly"] and found["snapshots"] == 1
    assert [each["job"] for each in ask("status")["jobs"]] == ["nightly"]  # there is no store in the default place
    Store.create(str(tmp_path / "other"))
    assert ask("--store", tmp_path / "other", "status")["jobs"] == []
    assert call("job", "run", "nightly", "--only", "drill").code == 2  # the profile has none
    for wrong in (("--store", "/x"), ("--ns", "a"), ("--keyfile", "/x"), ("--read-only",)):
        assert call(*wrong, "job", "run", "nightly").code == 2
