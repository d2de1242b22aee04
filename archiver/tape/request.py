"""Having a medium in the drive: the changer loads it, or a person is asked for it (spec tape.md 5.3)."""

from __future__ import annotations

import time
from collections.abc import Callable

from archiver.core.clock import Clock
from archiver.core.events import Listener, Notice
from archiver.errors import NotFound, TargetAbsent
from archiver.tape.access import Access
from archiver.tape.drive.interface import MediumError, NoMedium
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.labels import Labels, NotALabel, read_labels
from archiver.tape.state.inventory import Medium

_POLL_SECONDS = 5.0

Pause = Callable[[float], None]  # so many seconds, or until a person says that the medium is in


class WrongMedium(TargetAbsent):
    """The medium that is needed did not come; what is in the drive was not touched."""

    code = "wrong-medium"


def request_medium(
    access: Access,
    medium: Medium,
    listener: Listener,
    *,
    wait_seconds: float = 0.0,
    pause: Pause = time.sleep,
    clock: Clock | None = None,
) -> Labels:
    """Its labels, once it is in the drive. Each new reason why it is not is told once. Raises WrongMedium when it did
    not come within ``wait_seconds``."""
    clock = clock or Clock()
    deadline = clock.steady() + wait_seconds
    told = None
    while True:
        found, reason = _look(access, medium)
        if found is not None:
            return found
        if clock.steady() >= deadline:
            raise WrongMedium(
                f"the medium {medium.name} is not in the drive {access.name}: {reason}",
                hint=_hint(access, medium),
            )
        if reason != told:
            told = reason
            listener(
                Notice(f"please insert the medium {medium.name} into the drive {access.name}: {reason}", "warning")
            )
        seconds = min(_POLL_SECONDS, max(0.0, deadline - clock.steady()))
        if isinstance(access.drive, VirtualDrive):
            with access.drive.let_go():  # its disk may be unplugged meanwhile
                pause(seconds)
        else:
            pause(seconds)


def _hint(access: Access, medium: Medium) -> str:
    if access.library is None:
        return f"insert {medium.name} and run this again; --wait SECONDS waits for it"
    return "plug in the disk, or fill the library, that has it and run this again; --wait SECONDS waits for it"


def _look(access: Access, medium: Medium) -> tuple[Labels | None, str]:
    """The labels of the right medium, else None and why not."""
    try:
        access.changer.load(medium.name)
        if not access.drive.wait_until_ready(_POLL_SECONDS):
            return None, "the drive is empty"
        found = read_labels(access.drive)
    except NotFound:
        return None, f"it is not in {access.library}"
    except NoMedium:
        return None, "the drive is empty"
    except NotALabel:
        return None, "what is in the drive has other data on it"
    except (MediumError, TargetAbsent) as error:
        return None, str(error)
    if found is None:
        return None, "what is in the drive is empty, and has no label"
    if found.label.uuid != medium.uuid:
        if found.label.label_text == medium.name:
            return None, "what is in the drive has the same label, and is another medium"
        return None, f"the medium {found.label.label_text} is in the drive"
    return found, ""


def check_loaded(access: Access) -> None:
    """Raises NoMedium, with what can be loaded in the hint."""
    if access.drive.wait_until_ready(0):
        return
    labels = access.changer.online()
    hint = (
        "insert a medium" if labels is None else f"load one: archiver tape load LABEL ({', '.join(labels) or 'none'})"
    )
    raise NoMedium(f"there is no medium in the drive {access.name}", hint=hint)
