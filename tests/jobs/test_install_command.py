"""job install, uninstall, notify as they are called; and what is written, called as it is written."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from archiver.cli import job_units
from archiver.jobs import install
from tests.cli.command import ROOT, ask, call
from tests.test_readme import documented, inner_members

PLAN = documented()["job install"].keys() | {"schema"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job with a schedule and a store, and programs that only say how they were called."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files/one").write_bytes(b"one")
    ask("init", tmp_path / "store")
    write_profile(tmp_path)
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("systemctl", f'echo "$@" >> {tmp_path}/called'),
        ("archiver", f'PYTHONPATH={ROOT} exec {sys.executable} -m archiver "$@"'),
        ("crontab", f'[ "$1" = -l ] && exec cat {tmp_path}/table; exec cat > {tmp_path}/table'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "table").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(install, "_RUNNING", str(tmp_path / "booted"))
    monkeypatch.setattr(job_units, "program", lambda: [str(tmp_path / "bin/archiver")])
    return tmp_path


def write_profile(place: Path, more: str = '[schedule]\nat = "02:00"\n') -> Path:
    profile = place / ".xdg/config/archiver/home.toml"
    profile.parent.mkdir(parents=True, exist_ok=True)
    profile.write_text(f'store = "{place}/store"\nsources = ["{place}/files"]\n[keep]\nlast = 9\n{more}')
    return profile


USER = ("--scope", "user", "--with", "systemd")


def unit(place: Path, name: str) -> Path:
    return place / ".xdg/config/systemd/user" / name


def test_documents(place: Path) -> None:
    planned = ask("job", "install", "home", *USER, "--dry-run")
    assert planned.keys() == PLAN and planned["dry_run"] and not unit(place, "").exists()
    assert inner_members(planned["items"]) == documented()["job install"]["items"] == {"path", "action", "text"}
    assert (planned["way"], planned["scope"], planned["mounts"]) == ("systemd", "user", [])
    done = ask("job", "install", "home", *USER)
    assert done == planned | {"dry_run": False} and unit(place, "archiver-job-home.timer").exists()
    again = ask("job", "install", "home", *USER)
    assert {item["action"] for item in again["items"]} == {"unchanged"}
    gone = ask("job", "uninstall", "home", "--scope", "user")
    assert gone.keys() == PLAN and {item["action"] for item in gone["items"]} == {"remove"}
    assert ask("job", "uninstall", "home", "--scope", "user")["items"] == []


def test_of_the_system(place: Path) -> None:
    planned = ask("job", "install", "home", "--scope", "system", "--with", "systemd", "--dry-run")
    assert {os.path.dirname(item["path"]) for item in planned["items"]} == {"/etc/systemd/system"}
    assert planned["commands"][0][:2] == ["systemctl", "enable"] and not (place / "called").exists()


def test_in_words(place: Path) -> None:
    text = call("job", "install", "home", *USER, "--dry-run").out
    assert f"would write {unit(place, 'archiver-job-home.service')}" in text and "    Persistent=true" in text
    done = call("job", "install", "home", *USER)
    assert "called systemctl --user enable" in done.out and "loginctl enable-linger" in done.err
    assert "unchanged: " in call("job", "install", "home", *USER).out
    assert call("job", "uninstall", "home", "--scope", "user", "--dry-run").out.count("would remove") == 4
    assert call("job", "uninstall", "home", "--scope", "user").out.count("removed") == 4
    assert "nothing of the job home" in call("job", "uninstall", "home", "--scope", "user").out


def test_uninstalled_without_a_profile(place: Path) -> None:
    ask("job", "install", "home", *USER)
    write_profile(place).unlink()
    assert len(ask("job", "uninstall", "home", "--scope", "user")["items"]) == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("install", "absent"), 10),
        (("install", "a/b"), 2),
        (("uninstall", "a/b"), 2),
        (("install", "home", "--scope", "other"), 2),
        (("install", "home", "--with", "anacron"), 2),
        (("notify", "absent"), 10),
        (("notify", "home"), 2),
    ],
)
def test_refused(place: Path, arguments: tuple[str, ...], code: int) -> None:
    done = call("job", *arguments, "--json")
    assert done.code == code and done.error["message"]
    assert not unit(place, "").exists() and not (place / "called").exists()


@pytest.mark.parametrize("more", ["", '[schedule]\nat = "02:00"\non-plug = true\n', "[schedule]\nat = 5\n"])
def test_profiles_that_cannot_be_installed(place: Path, more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "all_mount_points", lambda: ["/"])
    monkeypatch.setattr(install, "_FSTAB", str(place / "absent"))
    write_profile(place, more)
    assert call("job", "install", "home", *USER, "--json").code == 2
    assert not unit(place, "").exists()


def test_what_is_wrong_with_systemctl_is_told(place: Path) -> None:
    (place / "bin/systemctl").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    done = call("job", "install", "home", *USER, "--json")
    assert done.code == 1 and "no bus" in done.error["message"]


def as_systemd_does(text: str) -> tuple[list[str], dict[str, str]]:
    """The words of ExecStart and the variables of a service; our quotes mean the same to a shell."""
    settings = [line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#")]
    (line,) = (value for name, value in settings if name == "ExecStart")
    words = [word.replace("$$", "$").replace("%%", "%") for word in shlex.split(line)]
    variables = [shlex.split(value)[0].split("=", 1) for name, value in settings if name == "Environment"]
    return words, {name: value.replace("%%", "%") for name, value in variables}


def test_service_is_called_as_it_is_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("job", "install", "home", *USER)
    for name in ("archiver-job-home.service", "archiver-watch-home.service"):
        words, variables = as_systemd_does(unit(place, name).read_text())
        assert words[0] == str(place / "bin/archiver")
        done = subprocess.run(
            words,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere"} | variables,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert [run["exit_code"] for run in ask("job", "report", "home")["items"]] == [0]
    assert len(ask("--store", place / "store", "snapshots")["items"]) == 1


def test_crontab_is_called_as_it_is_written(place: Path) -> None:
    planned = ask("job", "install", "home", "--with", "cron")
    assert planned["way"] == "cron" and [item["path"] for item in planned["items"]] == ["crontab"]
    line = (place / "table").read_text().splitlines()[1]
    command = line.split(" ", 5)[5].replace("\\%", "%")
    for _ in range(2):  # the second one finds that it has been done
        done = subprocess.run(
            ["sh", "-c", command],
            env={"PATH": f"{place}/bin:/usr/bin:/bin", "HOME": "/nowhere"},
            cwd="/",
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(ask("--store", place / "store", "snapshots")["items"]) == 1
    assert call("job", "uninstall", "home").code == 0 and (place / "table").read_text() == ""


def test_notify(place: Path) -> None:
    write_profile(
        place, f'[[notify]]\nkind = "command"\nto = "cat > {place}/told"\n[[notify]]\nkind = "command"\nto = "false"\n'
    )
    done = call("job", "notify", "home", "--json")
    assert done.code == 1 and "This is a test" in (place / "told").read_text()
    items = done.document["items"]
    assert done.document.keys() - {"schema"} == documented()["job notify"].keys()
    assert inner_members(items) == documented()["job notify"]["items"]
    assert [item["reason"] for item in items] == [None, "the command ended with exit code 1"]
    words = call("job", "notify", "home")
    assert (
        words.lines[0].endswith(": sent") and words.lines[1].endswith(": not sent") and "nobody was told" in words.err
    )


def test_this_program_is_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", [str(place / "bin/archiver")])
    assert job_units.program() == [str(place / "bin/archiver")]
    monkeypatch.setattr(sys, "argv", ["/elsewhere/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(place / "bin/python"))
    assert job_units.program() == [str(place / "bin/archiver")]
    monkeypatch.setattr(sys, "executable", "/elsewhere/python")
    monkeypatch.setenv("PATH", "/elsewhere")
    assert job_units.program() == ["/elsewhere/python", "-m", "archiver"]
    assert os.access(place / "bin/archiver", os.X_OK)
