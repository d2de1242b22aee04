"""Making media known: labelling empty ones, reading labels into the inventory, erasing (spec tape.md 12, 13).

A medium with data on it, or with another label, is never labelled. Labels are not authenticated: nothing is forgotten
or erased only because of what a label says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from archiver.core.clock import Clock, Random, system_random
from archiver.core.events import Listener, Notice
from archiver.errors import Held, NotFound, UsageError
from archiver.tape.access import Access
from archiver.tape.drive.interface import MediumError, WriteProtected
from archiver.tape.drive.virtual import VirtualDrive
from archiver.tape.labels import Labels, NotALabel, read_labels, write_label
from archiver.tape.request import check_loaded
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import Inventory, InventoryFile, Medium
from archiver.tape.state.place import TapePlace
from archiver.tape.state.pools import Pools
from archiver.tape.state.session import new_uuid
from formats.errors import FormatError
from formats.naming import check_media_name
from formats.tape.content import encode_uuid
from formats.tape.labels import MediaLabel

_CLEANING = "CLN"


class NotLabelled(NotFound):
    """The medium in the drive is empty."""

    code = "not-labelled"


@dataclass(frozen=True, slots=True)
class Found:
    """What a medium that was at hand turned out to be. ``medium``: None where it has no label; ``note``: why not, or
    what was done."""

    label_text: str
    medium: Medium | None
    note: str


def check_label_text(text: str) -> None:
    """Raises UsageError."""
    try:
        check_media_name("label text", text)
    except FormatError as error:
        raise UsageError(str(error)) from error
    if text.startswith(_CLEANING):
        raise UsageError(f"labels that begin with {_CLEANING} are those of cleaning tapes", hint="choose another")


def label_medium(
    access: Access,
    text: str,
    pool: str | None,
    *,
    clock: Clock | None = None,
    random: Random = system_random,
) -> Medium:
    """Label the empty medium in the drive; of a virtual drive, a new one. Raises UsageError where a medium has that
    text, or the one in the drive is not empty."""
    check_label_text(text)
    place, drive = access.place, access.drive
    if pool is not None:
        Pools(place).get(pool)
    inventory = InventoryFile(place)
    inventory.check_new_label(text)
    if isinstance(drive, VirtualDrive):
        if text in drive.labels():
            drive.load(text)
        else:
            drive.add(text)
    check_loaded(access)
    _check_empty(access)
    now = (clock or Clock()).now()
    label = MediaLabel(text, new_uuid(random), now, pool)
    write_label(drive, label, now, random)
    CatalogLogs(place).create(label.uuid, None, 0)
    inventory.change(lambda known: known.store_labels(label, None, keep_status=False))
    access.update_online()
    return inventory.load().get(label.uuid)


def _check_empty(access: Access) -> None:
    found = read_labels(access.drive)
    if found is not None:
        raise UsageError(
            f"the medium in the drive {access.name} has the label {found.label.label_text} already",
            hint="a medium that may be erased is made empty first: archiver tape format",
        )


def label_all(access: Access, pool: str | None, listener: Listener, *, clock: Clock | None = None) -> list[Found]:
    """Label all media at hand that are empty and not known with the text on their cartridges, in its order."""
    labels = access.update_online()
    if labels is None:
        raise UsageError(f"a person changes the media of {access.name}: nothing says which there are")
    if pool is not None:
        Pools(access.place).get(pool)
    done = []
    for text in labels:
        if any(medium.name == text for medium in InventoryFile(access.place).load()):
            continue
        try:
            access.changer.load(text)
            done.append(Found(text, label_medium(access, text, pool, clock=clock), "labelled"))
        except (NotALabel, UsageError, MediumError) as error:
            listener(Notice(f"{text} is not labelled: {error}", "warning"))
            done.append(Found(text, None, str(error)))
    return done


def read_medium(access: Access) -> Labels:
    """The labels of the medium in the drive. Raises NoMedium, NotLabelled, NotALabel."""
    check_loaded(access)
    found = read_labels(access.drive)
    if found is None:
        raise NotLabelled(
            f"the medium in the drive {access.name} is empty: it has no label",
            hint="label it: archiver tape label --label-text TEXT",
        )
    return found


def enter(place: TapePlace, labels: Labels) -> Medium:
    """Into the inventory, as they were read."""
    logs = CatalogLogs(place)
    medium = InventoryFile(place).change(
        lambda inventory: inventory.store_labels(labels.label, labels.set_label, keep_status=True)
    )
    if medium.in_set is None and logs.stamp(medium.uuid) is None:
        logs.create(medium.uuid, None, 0)
    return medium


def read_all(access: Access, listener: Listener, *, known_too: bool) -> list[Found]:
    """Load what is at hand, medium by medium, and enter its labels in the inventory; those that are known already only
    with ``known_too``."""
    labels = access.update_online()
    if labels is None:
        raise UsageError(
            f"a person changes the media of {access.name}: nothing says which there are",
            hint="insert them one after the other: archiver tape read-label --inventorize",
        )
    done = []
    for text in labels:
        known = [medium for medium in InventoryFile(access.place).load() if medium.name == text]
        if len(known) == 1 and not known_too:
            done.append(Found(text, known[0], "known"))
            continue
        try:
            access.changer.load(text)
            found = read_labels(access.drive)
        except (NotALabel, MediumError) as error:
            listener(Notice(f"{text}: {error}", "warning"))
            done.append(Found(text, None, str(error)))
            continue
        if found is None:
            done.append(Found(text, None, "empty"))
            continue
        if found.label.label_text != text:
            listener(Notice(f"{text} says that it is {found.label.label_text}", "warning"))
        done.append(Found(text, enter(access.place, found), "read"))
    access.update_online()
    return done


def erase(access: Access, *, fast: bool, label_text: str | None, force: bool) -> Medium | None:
    """Erase the medium in the drive and forget it; the medium that it was, None where it had no known label. Raises
    UsageError where it is not ``label_text``, Held where it is in a media set, unless ``force``."""
    check_loaded(access)
    place, drive = access.place, access.drive
    try:
        found = read_labels(drive)
    except (NotALabel, MediumError) as error:
        if label_text is not None:
            raise UsageError(f"the medium in the drive is not {label_text}: {error}") from error
        if not force:
            raise Held(
                f"what is in the drive {access.name} has other data on it, or is damaged: {error}",
                hint="--force erases it",
            ) from error
        found = None
    if label_text is not None and (found is None or found.label.label_text != label_text):
        actual = "has no label" if found is None else f"is {found.label.label_text}"
        raise UsageError(f"the medium in the drive is not {label_text}, it {actual}", hint="nothing was erased")
    if found is not None and found.set_label is not None and any(found.set_label.uuid) and not force:
        raise Held(
            f"the medium {found.label.label_text} is in the media set {encode_uuid(found.set_label.uuid)}",
            hint="all backups on it will be lost; --force erases it",
        )
    if drive.status().write_protected:
        raise WriteProtected(f"the medium in the drive {access.name} is write-protected", hint="flip its switch")
    known = None if found is None else InventoryFile(place).load().media.get(found.label.uuid)
    if known is not None:  # before it is erased: where that does not come to its end, nothing is claimed to be on it
        forget(place, known, force=True)
        CatalogLogs(place).remove(known.uuid)
    drive.format(fast=fast)
    drive.flush()
    return known


def forget(place: TapePlace, medium: Medium, *, force: bool) -> None:
    """Take a medium out of the inventory; its catalog stays. Raises Held for one in a media set, unless ``force``."""
    if medium.in_set is not None and not force:
        raise Held(
            f"the medium {medium.name} is in the media set {encode_uuid(medium.in_set.uuid)}",
            hint="restores will not find what is on it; --force forgets it",
        )
    InventoryFile(place).change(lambda inventory: inventory.media.pop(medium.uuid, None))


def change_medium(place: TapePlace, text: str, change: Callable[[Medium], Medium]) -> Medium:
    """Change what is stored about the medium with that label or uuid. Raises NotFound."""

    def work(inventory: Inventory) -> Medium:
        medium = change(inventory.find(text))
        inventory.put(medium)
        return medium

    return InventoryFile(place).change(work)
