"""Where profiles are: NAME.toml in the user's configuration directory or the system's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from archiver.errors import NotFound, UsageError
from archiver.jobs.history import checked_home
from archiver.keys.places import configuration

SYSTEM = "/etc/archiver"
ENDING = ".toml"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


def directories(environment: Mapping[str, str], system: str = SYSTEM) -> tuple[str, str]:
    """Where profiles are, the user's own first. Raises UsageError where there is no home."""
    return checked_home(os.path.dirname(configuration(environment, "any"))), system


def check_name(name: str) -> None:
    """Raises UsageError for what can be no job's name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a job", hint="letters, digits, _ and - are allowed, 64 at most")


def profiles(places: tuple[str, ...]) -> dict[str, str]:
    """The path of each profile by its name; of two with the same name the first one's."""
    found: dict[str, str] = {}
    for place in places:
        try:
            entries = sorted(os.listdir(place))
        except OSError:
            continue
        for entry in entries:
            name = entry.removesuffix(ENDING)
            if name != entry and _NAME.fullmatch(name):
                found.setdefault(name, os.path.join(place, entry))
    return dict(sorted(found.items()))


def find(name: str, places: tuple[str, ...]) -> str:
    """The path of a profile. Raises NotFound, UsageError."""
    check_name(name)
    for place in places:
        path = os.path.join(place, name + ENDING)
        if os.path.lexists(path):
            return path
    raise NotFound(f"there is no job {name}", hint=f"its profile would be {places[0]}/{name}{ENDING}")
