"""Having a job run by itself, and no more: as a plan that is shown or carried out.

Whatever there is of the job already is made what it should be, so that installing again changes nothing, and installing
with cron takes systemd's units away.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from archiver.core.disk import Disk, explained
from archiver.core.linux import all_mount_points
from archiver.errors import ArchiverError, UsageError
from archiver.jobs.crontab import cron_lines, read_crontab, without_job, write_crontab
from archiver.jobs.profile import Profile
from archiver.jobs.units import MARK, Unit, plug_name, unit_names, units

Scope = Literal["system", "user"]
Way = Literal["systemd", "cron"]
Action = Literal["create", "replace", "unchanged", "remove"]

SYSTEM_UNITS = "/etc/systemd/system"
CRONTAB = "crontab"
_RUNNING = "/run/systemd/system"  # sd_booted(3)
_FSTAB = "/etc/fstab"
_ESCAPE = re.compile(r"\\([01][0-7]{2})")  # of blanks in fstab
_LARGEST = 1 << 16  # bytes
_MODE = 0o644
_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Item:
    """A unit file, or the job's lines in the crontab. ``text``: what it will be, None when it goes."""

    path: str
    action: Action
    text: str | None

    def as_json(self) -> dict[str, Any]:
        return {"path": self.path, "action": self.action, "text": self.text}


@dataclass(frozen=True, slots=True)
class Plan:
    """``before``, ``after``: commands run around the change of the files. ``mounts``: drives that start a run."""

    job: str
    way: Way
    scope: Scope
    items: tuple[Item, ...]
    before: tuple[tuple[str, ...], ...]
    after: tuple[tuple[str, ...], ...]
    mounts: tuple[str, ...] = ()
    crontab: tuple[str, ...] | None = None

    @property
    def is_change(self) -> bool:
        return any(item.action != "unchanged" for item in self.items)

    def as_json(self, *, dry_run: bool) -> dict[str, Any]:
        return {
            "schema": 1,
            "job": self.job,
            "way": self.way,
            "scope": self.scope,
            "dry_run": dry_run,
            "items": [item.as_json() for item in self.items],
            "commands": [list(command) for command in (*self.before, *self.after)],
            "mounts": list(self.mounts),
        }


def is_systemd_running() -> bool:
    return os.path.isdir(_RUNNING)


def plan_install(
    profile: Profile, program: Sequence[str], environment: Mapping[str, str], scope: Scope, way: Way
) -> Plan:
    """Raises UsageError where the profile does not say when, ArchiverError where files of others are in the way."""
    schedule, job = profile.schedule, profile.name
    if schedule is None:
        raise UsageError(
            f"the job {job} has no [schedule]: nothing says when it is to be run",
            hint=f'write into {profile.path} for example: [schedule] and below it at = "02:00"',
        )
    if way == "cron":
        lines = cron_lines(job, program, environment, os.uname().nodename)
        return _plan(job, scope, way, environment, [], lines, ())
    mounts = drives(profile) if schedule.on_plug else []
    wanted = units(job, program, schedule, mounts, environment, _systemctl(scope))
    return _plan(job, scope, way, environment, wanted, [], tuple(mounts))


def plan_uninstall(job: str, environment: Mapping[str, str], scope: Scope) -> Plan:
    """Whatever there is of the job; its history and its snapshots stay."""
    return _plan(job, scope, "systemd", environment, [], [], ())


def _plan(
    job: str,
    scope: Scope,
    way: Way,
    environment: Mapping[str, str],
    wanted: Sequence[Unit],
    lines: Sequence[str],
    mounts: tuple[str, ...],
) -> Plan:
    base = unit_directory(scope, environment)
    texts = {unit.name: unit.text for unit in wanted}
    items = [item for name in unit_names(job) if (item := _item(os.path.join(base, name), texts.get(name))) is not None]
    table, crontab = read_crontab(), None
    if table is None and lines:
        raise ArchiverError(
            "there is neither systemd nor cron here to run a job", hint="apt install cron, or run it by other means"
        )
    if table is not None and (kept := without_job(table, job)) + list(lines) != table:
        crontab = (*kept, *lines)
        action: Action = "remove" if not lines else "create" if kept == table else "replace"
        items.append(Item(CRONTAB, action, "\n".join(lines) + "\n" if lines else None))
    elif lines:
        items.append(Item(CRONTAB, "unchanged", "\n".join(lines) + "\n"))
    before, after = _commands(job, scope, items, [unit.name for unit in wanted], mounts)
    return Plan(job, way, scope, tuple(items), before, after, mounts, crontab)


def _item(path: str, text: str | None) -> Item | None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            now = file.read(_LARGEST)
    except FileNotFoundError:
        return None if text is None else Item(path, "create", text)
    except OSError as error:
        raise ArchiverError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from error
    if not now.startswith(MARK):
        raise ArchiverError(
            f"{path} was not written by this program", hint="move it away, or give the job another name"
        )
    if text is None:
        return Item(path, "remove", None)
    return Item(path, "unchanged" if now == text else "replace", text)


def _commands(
    job: str, scope: Scope, items: Sequence[Item], wanted: Sequence[str], mounts: Sequence[str]
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """``systemctl enable`` works where systemd does not run, too, as in an image that is being made."""
    ctl = _systemctl(scope)
    gone = [os.path.basename(item.path) for item in items if item.action == "remove" and item.path != CRONTAB]
    replaced = [os.path.basename(item.path) for item in items if item.action == "replace"]
    if not wanted and not gone:
        return (), ()
    before, after = list[tuple[str, ...]](), list[tuple[str, ...]]()
    running, plug = is_systemd_running(), plug_name(job)
    if stale := [*gone, *([plug] if plug in replaced else [])]:  # the mount point before may be another one
        before.append((*ctl, "disable", *stale))
    if running and (old := [name for name in gone if name.endswith(".timer")]):
        before.append((*ctl, "stop", *old))
    timers = [name for name in wanted if name.endswith(".timer")]
    if wanted:
        after.append((*ctl, "enable", *timers, *([plug] if mounts else [])))
    if running:
        after.append((*ctl, "daemon-reload"))
        if wanted:
            after.append((*ctl, "restart" if replaced else "start", *timers))
    return tuple(before), tuple(after)


def carry_out(plan: Plan, disk: Disk | None = None) -> None:
    """Raises ArchiverError; the same again goes on from there."""
    disk = disk or Disk()
    for command in plan.before:
        _run(command)
    for item in plan.items:
        if item.path == CRONTAB or item.action == "unchanged":
            continue
        with explained("remove" if item.text is None else "write", item.path):
            if item.text is None:
                disk.remove_file(item.path)
            else:
                disk.make_directories(os.path.dirname(item.path), 0o755)
                disk.put(item.path, [item.text.encode("utf-8", "surrogateescape")], _MODE, sync=True)
    if plan.crontab is not None:
        write_crontab(plan.crontab)
    for command in plan.after:
        _run(command)


def _systemctl(scope: Scope) -> tuple[str, ...]:
    return ("systemctl",) if scope == "system" else ("systemctl", "--user")


def unit_directory(scope: Scope, environment: Mapping[str, str]) -> str:
    if scope == "system":
        return SYSTEM_UNITS
    base = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "systemd", "user")


def drives(profile: Profile) -> list[str]:
    """Mount points of the drives that stores and copies are on: those mounted now, and those of fstab. What the profile
    itself is on is none. Raises UsageError when there is no such drive."""
    places = [os.path.realpath(path) for path in (*profile.stores, *(sync.target for sync in profile.syncs))]
    known = {*all_mount_points(), *_fstab()} - {"/"}
    known = {mount for mount in known if not _is_below(os.path.realpath(profile.path), mount)}
    found = {
        max(above, key=len) for place in places if (above := [mount for mount in known if _is_below(place, mount)])
    }
    if not found:
        raise UsageError(
            f"no store or copy of the job {profile.name} is on a drive that is mounted now or in {_FSTAB}",
            hint="plug it in and mount it, and install again; or remove on-plug from the [schedule]",
        )
    return sorted(found)


def _is_below(path: str, mount: str) -> bool:
    return os.path.commonpath((path, mount)) == mount


def _fstab() -> list[str]:
    try:
        with open(_FSTAB, encoding="utf-8", errors="surrogateescape") as file:
            fields = [line.split() for line in file if not line.lstrip().startswith("#")]
    except OSError:
        return []
    places = [found[1] for found in fields if len(found) > 1 and found[1].startswith("/")]
    return [_ESCAPE.sub(lambda found: chr(int(found[1], 8)), place) for place in places]


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    except FileNotFoundError as error:
        raise ArchiverError(f"there is no {command[0]} here", hint="without systemd: --with cron") from error
    except subprocess.TimeoutExpired as error:
        raise ArchiverError(f"{' '.join(command)} was not done after {_SECONDS} seconds") from error
    if done.returncode:
        raise ArchiverError(
            f"{' '.join(command)} failed: {' '.join(done.stderr.split())}",
            hint="yours runs while you are logged in, or always: loginctl enable-linger"
            if "--user" in command
            else None,
        )
