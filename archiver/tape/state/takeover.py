"""Taking over the tapes of a PBS: its inventory and catalogs, copied from its state directory (spec tape.md 6.1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from archiver.errors import ArchiverError, NotFound
from archiver.tape.state.catalog_log import CatalogLogs
from archiver.tape.state.inventory import FILE, Inventory, InventoryFile, Medium, decode_inventory
from archiver.tape.state.place import TapePlace
from formats.tape.content import encode_uuid


@dataclass(slots=True)
class TakenOver:
    """``media`` that are new here, ``catalogs`` that were missing here; ``problems``: what was left, as sentences."""

    media: list[Medium] = field(default_factory=list)
    catalogs: list[Medium] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def take_over(place: TapePlace, directory: str) -> TakenOver:
    """What is known here already stays as it is. Nothing is written into ``directory``. Raises NotFound, Damaged."""
    source = TapePlace(directory)
    if source.read(FILE) is None:
        raise NotFound(
            f"there is no {FILE} in {directory}",
            hint="name a copy of the state directory of a Proxmox Backup Server (/var/lib/proxmox-backup/tape)",
        )
    theirs = decode_inventory(source, FILE)
    result = TakenOver()

    def add(inventory: Inventory) -> None:
        for medium in theirs:
            if medium.uuid in inventory.media:
                continue
            if any(known.name == medium.name for known in inventory):
                result.problems.append(f"there is another medium {medium.name} here; theirs was not taken")
                continue
            inventory.put(medium)
            result.media.append(medium)

    InventoryFile(place).change(add)
    logs, other_logs = CatalogLogs(place), CatalogLogs(source)
    known = InventoryFile(place).load()
    for medium in theirs:
        ours = known.media.get(medium.uuid)
        if ours is None or ours.in_set != medium.in_set:
            continue
        try:
            _take_catalog(logs, other_logs, medium, result)
        except ArchiverError as error:
            result.problems.append(str(error))
    return result


def _take_catalog(logs: CatalogLogs, others: CatalogLogs, medium: Medium, result: TakenOver) -> None:
    theirs = others.load(medium.uuid)
    place = medium.in_set
    if theirs is None or (theirs.media_set is not None) != (place is not None):
        if place is not None:
            result.problems.append(f"there is no catalog of the medium {medium.name} ({encode_uuid(medium.uuid)})")
        return
    if place is not None and (theirs.media_set, theirs.seq_nr) != (place.uuid, place.seq_nr):
        result.problems.append(f"the catalog of the medium {medium.name} is that of another media set")
        return
    ours = logs.load(medium.uuid)
    if ours is not None and ours.last_file >= theirs.last_file:
        return
    logs.replace(medium.uuid, others.read(medium.uuid), theirs.torn)
    result.catalogs.append(medium)
