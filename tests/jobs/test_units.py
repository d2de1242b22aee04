"""Timers, services and crontab lines: as systemd reads them, under a systemd that runs, and without one."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from archiver.errors import ArchiverError, UsageError
from archiver.jobs import install
from archiver.jobs.crontab import cron_lines, without_job
from archiver.jobs.install import Plan, carry_out, drives, plan_install, plan_uninstall
from archiver.jobs.load import load
from archiver.jobs.profile import Profile, Schedule
from archiver.jobs.schedule import calendar_lines, last_due
from archiver.jobs.units import MARK, command_line, mount_unit, units

NAMES = some.text(some.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=12)
SCHEDULE = Schedule(((2, 0), (14, 30)), ("mon", "sun"), 1800, on_plug=False)

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


def has_manager() -> bool:
    """Whether a systemd can be started as the manager of a user, with a /run of its own."""
    if os.geteuid() != 0 or not os.path.exists("/lib/systemd/systemd") or shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True).returncode == 0
    )


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    path = tmp_path / "home.toml"
    path.write_text(
        f'store = "{tmp_path}/drive/store"\nsources = ["{tmp_path}"]\n'
        '[keep]\nlast = 1\n[schedule]\nat = ["02:00", "14:30"]\ndays = ["mon", "sun"]\non-plug = true\n'
    )
    return load("home", str(path))


@needs_systemd
def test_verified_by_systemd(tmp_path: Path) -> None:
    words, ctl = ["/bin/echo", "a b", "50%", "$x"], ["systemctl", "--user"]
    for unit in units("home", words, SCHEDULE, ["/mnt/a b-c"], {"XDG_STATE_HOME": "/a b"}, ctl):
        (tmp_path / unit.name).write_text(unit.text)
    (tmp_path / "run").mkdir()
    for scope in ("--system", "--user"):
        done = subprocess.run(
            ["systemd-analyze", scope, "verify", *sorted(tmp_path.glob("archiver-*"))],
            env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path / "run")},
            capture_output=True,
            text=True,
        )
        complaints = [line for line in done.stderr.splitlines() if "archiver-" in line or str(tmp_path) in line]
        assert done.returncode == 0 and complaints == []


@needs_systemd
@pytest.mark.parametrize("days", [(), ("mon",), ("mon", "tue", "sun")])
def test_calendar(days: tuple[str, ...]) -> None:
    for line in calendar_lines(replace(SCHEDULE, days=days)):
        subprocess.run(["systemd-analyze", "calendar", line], check=True, capture_output=True)


def test_calendar_lines() -> None:
    assert calendar_lines(SCHEDULE) == ["Mon,Sun *-*-* 02:00:00", "Mon,Sun *-*-* 14:30:00"]
    assert calendar_lines(Schedule(((23, 5),), (), 0, on_plug=False)) == ["*-*-* 23:05:00"]


def test_last_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:

        def at(text: str) -> int:
            return int(time.mktime(time.strptime(text, "%Y-%m-%d %H:%M")))

        for now, due in (
            ("2026-11-23 01:59", "2026-11-22 14:30"),  # a Monday
            ("2026-11-23 02:00", "2026-11-23 02:00"),
            ("2026-11-28 12:00", "2026-11-23 14:30"),
            ("2026-11-29 01:00", "2026-11-23 14:30"),
            ("2026-03-30 01:00", "2026-03-29 14:30"),  # the day that has no 02:00 there
        ):
            assert last_due(SCHEDULE, at(now)) == at(due), now
        assert last_due(replace(SCHEDULE, at=()), at("2026-11-23 01:59")) is None
    finally:
        monkeypatch.undo()
        time.tzset()


@needs_systemd
@settings(max_examples=12, deadline=None)
@given(parts=some.lists(some.lists(NAMES, min_size=1, max_size=3), min_size=8, max_size=8))
def test_names_of_mount_units(parts: list[list[str]]) -> None:
    paths = ["/" + "/".join(part for part in names if part not in (".", "..")) for names in parts]
    done = subprocess.run(["systemd-escape", "--path", *paths], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0].split(" ") == [mount_unit(path).removesuffix(".mount") for path in paths]


def test_words_of_a_command() -> None:
    assert command_line(["/bin/a", "b c", "50%", "$HOME", '"', "\\", ""]) == (
        r'/bin/a "b c" "50%%" "$$HOME" "\"" "\\" ""'
    )


@pytest.mark.parametrize("path", ["/a\rb", "/a\x01b", "/a\udcffb", "/a\x7fb"])
def test_paths_that_systemd_cannot_be_told(path: str) -> None:
    for program, environment in (([path], {}), (["/a"], {"XDG_STATE_HOME": path})):
        with pytest.raises(ArchiverError, match="systemd takes no path with a control character"):
            units("home", program, SCHEDULE, (), environment, ["systemctl"])


def test_drives(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the root nor what the profile is on."""
    mounted = ["/", str(tmp_path), "/media/other"]
    monkeypatch.setattr(install, "all_mount_points", lambda: mounted)
    monkeypatch.setattr(install, "_FSTAB", str(tmp_path / "fstab"))
    with pytest.raises(UsageError, match="on a drive that is mounted now"):
        drives(profile)
    mounted.append(f"{tmp_path}/drive")
    assert drives(profile) == [f"{tmp_path}/drive"]
    mounted.pop()
    (tmp_path / "fstab").write_text(f"# comment\n\nUUID=1 {tmp_path}/drive ext4 noauto 0 0\nUUID=2 none swap\n")
    assert drives(profile) == [f"{tmp_path}/drive"]
    (tmp_path / "fstab").write_text(f"UUID=1 {tmp_path}/my\\040drive\\134 ext4\n")
    (tmp_path / "link").symlink_to(f"{tmp_path}/my drive\\/store")
    assert drives(replace(profile, stores=(f"{tmp_path}/link",), syncs=())) == [f"{tmp_path}/my drive\\"]


def planned(profile: Profile, tmp_path: Path, way: install.Way = "systemd") -> Plan:
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    return plan_install(profile, ["/usr/bin/archiver"], environment, "user", way)


@pytest.fixture
def offline(profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for units, programs that only record how they are called, and a crontab."""
    record = tmp_path / "record"
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("systemctl", f'echo "$@" >> {record}'),
        (
            "crontab",
            f'if [ "$1" = -l ]; then [ -e {tmp_path}/table ] || {{ echo "no crontab for me" >&2; exit 1; }};'
            f" cat {tmp_path}/table; else cat > {tmp_path}/table; fi",
        ),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(install, "_RUNNING", str(tmp_path / "booted"))
    monkeypatch.setattr(install, "all_mount_points", lambda: [f"{tmp_path}/drive"])
    return record


@pytest.mark.parametrize("is_booted", [False, True])
def test_installed_once(profile: Profile, tmp_path: Path, offline: Path, is_booted: bool) -> None:
    if is_booted:
        (tmp_path / "booted").mkdir()
    place = tmp_path / "config/systemd/user"
    plan = planned(profile, tmp_path)
    assert not place.exists() and [item.action for item in plan.items] == ["create"] * 5
    carry_out(plan)
    files = {path.name: path.read_text() for path in place.iterdir()}
    services = {f"archiver-{kind}-home.service" for kind in ("job", "watch", "plug")}
    assert files.keys() == services | {f"archiver-{kind}-home.timer" for kind in ("job", "watch")}
    service, timer = files["archiver-job-home.service"], files["archiver-job-home.timer"]
    assert f"WantedBy={mount_unit(f'{tmp_path}/drive')}\n" in files["archiver-plug-home.service"]
    assert "IOSchedulingClass=idle\n" in service and "CPUSchedulingPolicy=idle\n" in service
    assert f"Environment=XDG_CONFIG_HOME={tmp_path}/config\n" in service
    assert "Persistent=true\n" in timer and "RandomizedDelaySec=1800\n" in timer
    enable = "--user enable archiver-job-home.timer archiver-watch-home.timer archiver-plug-home.service"
    start = ["--user start archiver-job-home.timer archiver-watch-home.timer"]
    called = offline.read_text().splitlines()
    assert called == ([enable, "--user daemon-reload", *start] if is_booted else [enable])
    again = planned(profile, tmp_path)
    assert not again.is_change
    carry_out(again)
    assert {path.name: path.read_text() for path in place.iterdir()} == files
    gone = plan_uninstall("home", {"XDG_CONFIG_HOME": str(tmp_path / "config")}, "user")
    assert [item.action for item in gone.items] == ["remove"] * 5
    carry_out(gone)
    assert list(place.iterdir()) == []
    assert any(line.startswith("--user disable ") for line in offline.read_text().splitlines())
    nothing = plan_uninstall("home", {"XDG_CONFIG_HOME": str(tmp_path / "config")}, "user")
    assert nothing.items == () and not nothing.before and not nothing.after


def test_drive_that_starts_it_no_more(profile: Profile, tmp_path: Path, offline: Path) -> None:
    carry_out(planned(profile, tmp_path))
    assert profile.schedule is not None
    other = replace(profile, schedule=replace(profile.schedule, on_plug=False))
    plan = planned(other, tmp_path)
    assert [item.action for item in plan.items] == ["unchanged"] * 4 + ["remove"]
    carry_out(plan)
    assert not (tmp_path / "config/systemd/user/archiver-plug-home.service").exists()
    assert "--user disable archiver-plug-home.service" in offline.read_text().splitlines()


def test_another_drive(profile: Profile, tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out(planned(profile, tmp_path))
    monkeypatch.setattr(install, "all_mount_points", lambda: [f"{tmp_path}/drive/store"])
    plan = planned(profile, tmp_path)
    assert [item.action for item in plan.items] == ["unchanged"] * 4 + ["replace"]
    offline.unlink()
    carry_out(plan)
    assert [line.split()[1] for line in offline.read_text().splitlines()] == ["disable", "enable"]


def test_cron_in_place_of_systemd(profile: Profile, tmp_path: Path, offline: Path) -> None:
    (tmp_path / "table").write_text("# mine\n7 * * * * true\n")
    carry_out(planned(profile, tmp_path))
    plan = planned(profile, tmp_path, "cron")
    assert [item.action for item in plan.items] == ["remove"] * 5 + ["create"]
    carry_out(plan)
    lines = (tmp_path / "table").read_text().splitlines()
    assert lines[:2] == ["# mine", "7 * * * * true"] and len(lines) == 4
    assert "ionice -c 3 /usr/bin/archiver job run home --if-due --quiet" in lines[3]
    assert not planned(profile, tmp_path, "cron").is_change
    carry_out(planned(profile, tmp_path))
    assert (tmp_path / "table").read_text() == "# mine\n7 * * * * true\n"
    carry_out(planned(profile, tmp_path, "cron"))
    carry_out(plan_uninstall("home", {"XDG_CONFIG_HOME": str(tmp_path / "config")}, "user"))
    assert (tmp_path / "table").read_text() == "# mine\n7 * * * * true\n"


def test_who_may_have_no_crontab_has_systemd(profile: Profile, tmp_path: Path, offline: Path) -> None:
    (tmp_path / "bin/crontab").write_text("#!/bin/sh\necho You are not allowed to use this program >&2; exit 1\n")
    carry_out(planned(profile, tmp_path))
    assert not planned(profile, tmp_path).is_change
    with pytest.raises(ArchiverError, match="neither systemd nor cron"):
        planned(profile, tmp_path, "cron")


def test_file_of_somebody_else(profile: Profile, tmp_path: Path, offline: Path) -> None:
    mine = tmp_path / "config/systemd/user/archiver-job-home.timer"
    mine.parent.mkdir(parents=True)
    mine.write_text("[Timer]\n")
    with pytest.raises(ArchiverError, match="was not written by this program"):
        planned(profile, tmp_path)
    assert list(mine.parent.iterdir()) == [mine] and not offline.exists()


def test_neither_of_them(profile: Profile, tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArchiverError, match="neither systemd nor cron"):
        planned(profile, tmp_path, "cron")
    with pytest.raises(ArchiverError, match="there is no systemctl"):
        carry_out(planned(profile, tmp_path))


def test_what_fails_is_told(profile: Profile, tmp_path: Path, offline: Path) -> None:
    (tmp_path / "bin/systemctl").write_text("#!/bin/sh\necho no bus >&2; exit 1\n")
    with pytest.raises(ArchiverError, match=r"systemctl --user enable .* failed: no bus"):
        carry_out(planned(profile, tmp_path))


def test_no_schedule(profile: Profile, tmp_path: Path, offline: Path) -> None:
    with pytest.raises(UsageError, match=r"has no \[schedule\]"):
        planned(replace(profile, schedule=None), tmp_path)


def test_cron_line_is_run_as_it_is_written(tmp_path: Path) -> None:
    """cron takes a backslash before a percent sign away, and gives the rest to a shell."""
    program = tmp_path / "50% off\\% \\\\%/it's"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s|" "$@" "$XDG_STATE_HOME" > {tmp_path}/called\n')
    program.chmod(0o755)
    mark, line = cron_lines("home", [str(program)], {"XDG_STATE_HOME": "/a %b", "ARCHIVER_PASSWORD": "x"}, "laptop")
    minute, *stars, command = line.split(" ", 5)
    assert 0 <= int(minute) < 60 and stars == ["*"] * 4 and "PASSWORD" not in line
    subprocess.run(["sh", "-c", as_cron(command)], check=True)
    assert (tmp_path / "called").read_text() == "job|run|home|--if-due|--quiet|/a %b|"
    assert without_job([mark, line, mark.replace("home", "home2"), "x"], "home") == [mark.replace("home", "home2"), "x"]
    with pytest.raises(ArchiverError):
        cron_lines("home", ["/a\nb"], {}, "laptop")


def as_cron(line: str) -> str:
    """What cron gives to the shell of the rest of a line."""
    command, escaped = "", False
    for char in line:
        if escaped and char == "%":
            command = command[:-1]
        elif char == "%":
            break
        command, escaped = command + char, char == "\\" and not escaped
    return command


MANAGER = """
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system {place}/drive && mkdir -m 700 /run/own
export XDG_RUNTIME_DIR=/run/own
await() {{ for i in $(seq 600); do "$@" 2>/dev/null && return; sleep 0.1; done; echo "$* did not come" >&2; }}
mkdir -p {place}/.local/share/systemd/timers
touch -d '9 days ago' {place}/.local/share/systemd/timers/stamp-archiver-job-home.timer
/lib/systemd/systemd --user >{place}/log 2>&1 &
manager=$!
await systemctl --user is-active -q basic.target
{python} {script} install
systemctl --user list-timers --all --no-legend > {place}/timers
await test -s {place}/called
await sh -c '! systemctl --user is-active -q archiver-job-home.service'
mv {place}/called {place}/by-timer
mount -t tmpfs tmpfs {place}/drive
await test -s {place}/called
mv {place}/called {place}/by-drive
await sh -c '! systemctl --user is-active -q archiver-job-home.service'
touch {place}/fail
systemctl --user start archiver-job-home.service
await grep -q status {place}/called
mv {place}/called {place}/by-failure
{python} {script} uninstall
systemctl --user list-timers --all --no-legend > {place}/timers-after
kill $manager; wait $manager
umount {place}/drive
exit 0
"""
SCRIPT = """
import os, sys
from archiver.jobs.install import carry_out, plan_install, plan_uninstall
from archiver.jobs.load import load
environment = {{"XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"], "XDG_STATE_HOME": {state!r}}}
if sys.argv[1] == "install":
    profile = load("home", "{place}/home.toml")
    os.system("mount -t tmpfs tmpfs {place}/drive")
    plan = plan_install(profile, [{program!r}], environment, "user", "systemd")
    os.system("umount {place}/drive")
else:
    plan = plan_uninstall("home", environment, "user")
carry_out(plan)
"""


@pytest.mark.skipif(not has_manager(), reason="no systemd can be started here")
def test_under_systemd(profile: Profile, tmp_path: Path) -> None:
    """A manager takes the units; it runs the job that was missed while it was off, and when the drive is mounted, and
    the watch when the job crashed."""
    (tmp_path / "home.toml").write_text(
        (tmp_path / "home.toml").read_text().replace("on-plug", 'delay = "1s"\non-plug')
    )
    program = tmp_path / 'it\'s "50%n" of $HOME;\\x\nä' / "program"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/called\nprintf %s "$XDG_STATE_HOME" > {tmp_path}/state\n'
        f'[ "$2" = status ] || ! [ -e {tmp_path}/fail ]\n'
    )
    program.chmod(0o755)
    state = str(program.parent / "state")
    (tmp_path / "script.py").write_text(SCRIPT.format(place=tmp_path, program=str(program), state=state))
    text = MANAGER.format(place=tmp_path, python=shlex.quote(sys.executable), script=tmp_path / "script.py")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    environment["PYTHONPATH"] = str(Path(install.__file__).parent.parent.parent)
    subprocess.run(["unshare", "-m", "sh", "-c", text], env=environment, check=True, timeout=500)
    timers = (tmp_path / "timers").read_text()
    assert "archiver-job-home.timer" in timers and "archiver-watch-home.timer" in timers
    assert (tmp_path / "by-timer").read_text() == "job run home\n"
    assert (tmp_path / "by-drive").read_text() == "job run home\n"
    assert (tmp_path / "by-failure").read_text() == "job run home\njob status home --quiet\n"
    assert "archiver" not in (tmp_path / "timers-after").read_text()
    assert (tmp_path / "state").read_text() == state
    assert MARK not in "".join(path.read_text() for path in (tmp_path / "config").rglob("*archiver*") if path.is_file())
