"""A notification on the desktop: through notify-send, or else D-Bus by systemd's busctl.

A job of the system runs as root, and nobody sees root's desktop: whoever has a session is told then, each over the bus
in his runtime directory and as himself, as a bus takes its own user only.
"""

from __future__ import annotations

import html
import os
import pwd
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from archiver.errors import ArchiverError
from archiver.jobs.notify.message import Message
from archiver.jobs.notify.program import run_program

RUNTIME_DIRECTORIES = "/run/user"
_FIRST_PERSON = 1000  # user numbers below are those of services
_NAME = "org.freedesktop.Notifications"
_PATH = "/org/freedesktop/Notifications"
_SECONDS = 20.0


class Bus(NamedTuple):
    address: str
    user: tuple[int, int] | None


def notify_desktop(message: Message) -> None:
    """Raises ArchiverError where nobody is there to see it, or there is no program for it."""
    command = _command(message)
    buses = list(_buses())
    if not buses:
        raise ArchiverError("nobody is logged in to a desktop")
    failures: list[ArchiverError] = []
    for bus in buses:
        try:
            run_program(
                command,
                os.path.basename(command[0]),
                environment={"DBUS_SESSION_BUS_ADDRESS": bus.address},
                user=bus.user,
                seconds=_SECONDS,
            )
        except ArchiverError as error:
            failures.append(error)
    if len(failures) == len(buses):
        raise failures[0]


def _command(message: Message) -> list[str]:
    body = html.escape(message.body, quote=False)
    if program := shutil.which("notify-send"):
        urgency = "critical" if message.is_urgent else "normal"
        return [program, f"--urgency={urgency}", "--app-name=archiver", "--", message.subject, body]
    if program := shutil.which("busctl"):
        call = [program, "--user", "call", _NAME, _PATH, _NAME, "Notify", "susssasa{sv}i"]
        urgency = "2" if message.is_urgent else "1"
        return [*call, "archiver", "0", "", message.subject, body, "0", "1", "urgency", "y", urgency, "0"]
    raise ArchiverError("there is no program for notifications", hint="apt install libnotify-bin")


def _buses() -> Iterator[Bus]:
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    if address:
        yield Bus(address, None)
    elif os.geteuid() != 0:
        own = os.environ.get("XDG_RUNTIME_DIR") or os.path.join(RUNTIME_DIRECTORIES, str(os.geteuid()))
        if os.path.exists(os.path.join(own, "bus")):
            yield Bus(f"unix:path={own}/bus", None)
    else:
        yield from _buses_of_everybody()


def _buses_of_everybody() -> Iterator[Bus]:
    try:
        names = sorted(os.listdir(RUNTIME_DIRECTORIES))
    except OSError:
        return
    for name in names:
        bus = os.path.join(RUNTIME_DIRECTORIES, name, "bus")
        if name.isdecimal() and int(name) >= _FIRST_PERSON and os.path.exists(bus):
            try:
                group = pwd.getpwuid(int(name)).pw_gid
            except KeyError:
                continue
            yield Bus(f"unix:path={bus}", (int(name), group))
