"""What systemd is told of a job: a service that runs it, a timer, and a look once a day whether all is well.

``archiver-job-NAME.timer`` starts the service when the schedule says so, or as soon as the machine is on when that was
missed. ``archiver-plug-NAME.service`` is wanted by the mount unit of a drive and starts the service when that is
mounted, by whomever; a unit of its own, as nothing that is always loaded may name the mount unit: one that systemd
knows before the drive is there is never asked what it wants. The watch is what tells of a run that crashed, or that
never began: at once (OnFailure), or the next noon.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archiver.errors import ArchiverError
from archiver.jobs.profile import Schedule
from archiver.jobs.schedule import calendar_lines

MARK = "# Written by archiver job install; archiver job uninstall removes it."

# 3: some files could not be read; 13: the drive is absent; 14: by policy, as on battery
_NO_FAILURE = "3 13 14"
_STALE = "2 10 20 30 31"  # what the watch may find: it has told of it
_WATCHED = "*-*-* 12:00:00"
_WATCH_DELAY = 600  # seconds
_KEPT = (
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "ARCHIVER_DB_DIR",
    "ARCHIVER_RESERVE",
)
# Of what it starts systemd takes no name with one of these, and takes ``$`` for itself in arguments alone.
_SPECIAL = frozenset("\"'\\$")
_BY_SHELL = ("/bin/sh", "-c", 'exec "$0" "$@"')
# What may stand in the name of a unit as it is; a slash becomes a dash, all else \xNN (systemd-escape --path).
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789:_.")


@dataclass(frozen=True, slots=True)
class Unit:
    name: str
    text: str


def service_name(job: str) -> str:
    return f"archiver-job-{job}.service"


def timer_name(job: str) -> str:
    return f"archiver-job-{job}.timer"


def plug_name(job: str) -> str:
    return f"archiver-plug-{job}.service"


def unit_names(job: str) -> list[str]:
    """All that a job may have."""
    timed = [f"archiver-{kind}-{job}.{end}" for kind in ("job", "watch") for end in ("service", "timer")]
    return [*timed, plug_name(job)]


def units(
    job: str,
    program: Sequence[str],
    schedule: Schedule,
    mounts: Sequence[str],
    environment: Mapping[str, str],
    systemctl: Sequence[str],
) -> list[Unit]:
    """``program``: how this program is started. ``mounts``: mount points of drives that start a run. Raises
    ArchiverError for a path that systemd cannot be told."""
    program = _started(program, environment)
    watch = f"Looks every day whether the archiver job {job} is well"
    plug = [Unit(plug_name(job), _plug(job, mounts, systemctl))] if mounts else []
    return [
        *plug,
        Unit(service_name(job), _service(job, program, environment)),
        Unit(timer_name(job), _timer(f"Runs the archiver job {job}", calendar_lines(schedule), schedule.delay)),
        Unit(f"archiver-watch-{job}.service", _watch(job, program, environment)),
        Unit(f"archiver-watch-{job}.timer", _timer(watch, [_WATCHED], _WATCH_DELAY)),
    ]


def kept_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What a run later must find as it is now. No secrets: where the passphrase is, the profile says."""
    return {name: environment[name] for name in _KEPT if environment.get(name)}


def mount_unit(path: str) -> str:
    """The unit of a mount point."""
    parts = [part for part in path.split("/") if part]
    name = "-".join("".join(map(_escaped, part)) for part in parts)
    if name.startswith("."):
        name = "\\x2e" + name[1:]
    return f"{name or '-'}.mount"


def _escaped(char: str) -> str:
    return char if char in _PLAIN else "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def _service(job: str, program: Sequence[str], environment: Mapping[str, str]) -> str:
    return _text(
        "[Unit]",
        f"Description=Run the archiver job {job}",
        f"OnFailure=archiver-watch-{job}.service",
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={command_line([*program, 'job', 'run', job])}",
        f"SuccessExitStatus={_NO_FAILURE}",
        "CPUSchedulingPolicy=idle",
        "IOSchedulingClass=idle",
        "KillMode=mixed",
        "TimeoutStopSec=5min",
        *_variables(environment),
    )


def _plug(job: str, mounts: Sequence[str], systemctl: Sequence[str]) -> str:
    names = " ".join(map(mount_unit, mounts))
    return _text(
        "[Unit]",
        f"Description=Run the archiver job {job} when its drive is there",
        f"After={names}",
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={command_line([*systemctl, 'start', '--no-block', service_name(job)])}",
        "",
        "[Install]",
        f"WantedBy={names}",
    )


def _watch(job: str, program: Sequence[str], environment: Mapping[str, str]) -> str:
    return _text(
        "[Unit]",
        f"Description=Tell when the archiver job {job} is not well",
        "",
        "[Service]",
        "Type=oneshot",
        f"ExecStart={command_line([*program, 'job', 'status', job, '--quiet'])}",
        f"SuccessExitStatus={_STALE}",
        *_variables(environment),
    )


def _timer(description: str, calendar: Sequence[str], delay: int) -> str:
    return _text(
        "[Unit]",
        f"Description={description}",
        "",
        "[Timer]",
        *(f"OnCalendar={line}" for line in calendar),
        f"RandomizedDelaySec={delay}",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    )


def _started(program: Sequence[str], environment: Mapping[str, str]) -> Sequence[str]:
    for word in (*program, *kept_variables(environment).values()):
        if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t" for char in word):
            raise ArchiverError(f"systemd takes no path with a control character, or that is no UTF-8: {word!a}")
    if _SPECIAL.isdisjoint(program[0]) and program[0].isprintable():
        return program
    return [*_BY_SHELL, *program]


def command_line(words: Sequence[str]) -> str:
    """Words of a command as systemd reads them, see systemd.syntax(7): ``%`` and ``$`` mean themselves."""
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _variables(environment: Mapping[str, str]) -> list[str]:
    return [f"Environment={_quoted(f'{name}={text}')}" for name, text in kept_variables(environment).items()]


def _quoted(word: str) -> str:
    if word and all(char.isalnum() or char in "/_.=:+@-" for char in word):
        return word
    escaped = (
        word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n").replace("\t", "\\t")
    )
    return f'"{escaped}"'


def _text(*lines: str) -> str:
    return "\n".join((MARK, *lines)) + "\n"
