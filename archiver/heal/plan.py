"""What a healing would do, as a value: everything that is lost, which files that concerns, and where it can be had."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from archiver.browse.damage import files_of
from archiver.browse.snapshot import ArchiveFiles
from archiver.core.events import Listener
from archiver.errors import ArchiverError
from archiver.heal.candidates import Candidates, SetAside, first_file
from archiver.heal.damage import Damage, Key, LostChunk, LostFile, Place
from archiver.heal.find import Search, Subject
from archiver.heal.source import LivePlace, LiveSource
from archiver.store.layout import SnapshotRef
from archiver.store.store import Store
from formats.crypt import CryptConfig

_PLACES_KEPT = 10_000  # in all
_NAMES_KEPT = 16 << 20  # characters of the names of damaged files


@dataclass(frozen=True, slots=True)
class HealOptions:
    """Where to look besides what was set aside: ``copies`` of the store first, then ``live`` sources. ``read_all``:
    read every chunk, as a verification does; else only those that something speaks against."""

    copies: Sequence[Candidates] = ()
    live: Sequence[LivePlace] = ()
    read_all: bool = False


@dataclass(slots=True)
class HealPlan:
    """``files`` and ``chunks``: what is lost, with what is told of it. ``subjects``: the snapshots that were looked at,
    ``unfinished`` ones and ``busy`` ones were not."""

    search: Search
    candidates: Sequence[Candidates]
    files: dict[LostFile, Damage] = field(default_factory=dict)
    chunks: dict[Key, tuple[LostChunk, Damage]] = field(default_factory=dict)

    @property
    def subjects(self) -> list[Subject]:
        return self.search.subjects

    @property
    def damages(self) -> list[Damage]:
        return [*self.files.values(), *(damage for _, damage in self.chunks.values())]

    @property
    def remaining(self) -> list[Damage]:
        """What nothing at hand can heal; once the plan was carried out, what is not healed."""
        return [damage for damage in self.damages if not damage.healed]


def make_plan(
    store: Store,
    refs: Iterable[SnapshotRef],
    crypt: CryptConfig | None,
    options: HealOptions,
    listener: Listener,
) -> HealPlan:
    """Look for what is lost in ``refs``, and for where it can be had. Raises ArchiverError when that cannot be done to
    its end."""
    candidates: list[Candidates] = [SetAside(store, crypt), *options.copies]
    search = Search(store, crypt, candidates, listener, read_all=options.read_all)
    candidates += [LiveSource(store, crypt, place, search.subjects) for place in options.live]
    search.run(refs)
    plan = HealPlan(search, candidates)
    _add_files(plan)
    _add_chunks(plan)
    return plan


def _add_files(plan: HealPlan) -> None:
    for lost in plan.search.hopeless:
        plan.files[lost] = _of_file(lost)
    for subject in plan.subjects:
        for lost in subject.files:
            plan.files[lost] = damage = _of_file(lost)
            if lost.info is None:
                damage.remedy = subject.manifest_source
                continue
            found = first_file(plan.candidates, lost.ref, lost.info)
            if found is not None:
                found[1].close()
                damage.remedy = found[0].name


def _of_file(lost: LostFile) -> Damage:
    size = lost.info.size if lost.info is not None else 0
    damage = Damage(lost.kind, lost.name, size, lost.reason, place_count=1)
    damage.places.append(Place(str(lost.ref), lost.name, 0, size))
    return damage


def _add_chunks(plan: HealPlan) -> None:
    bad = plan.search.bad
    room, names_room = _PLACES_KEPT, _NAMES_KEPT
    for subject in plan.subjects:
        archives = _archives(subject)
        for file, index, found in subject.bad_chunks(bad):
            ranges = [(index.start(chunk.position), index.end(chunk.position)) for chunk in found]
            told = files_of(subject.snapshot, archives.get(file.filename), file, ranges[:room], names_room)
            names_room -= sum(len(name.path) for names in told for name in names)
            for number, (chunk, (start, end)) in enumerate(zip(found, ranges, strict=True)):
                key = chunk.digest, end - start, file.crypt_mode == "encrypt"
                subject.lost.add(key)
                lost = LostChunk(*key, subject.is_with_key(file), chunk.reason)
                _, damage = plan.chunks.setdefault(
                    key, (lost, Damage("chunk", chunk.digest.hex(), key[1], chunk.reason))
                )
                damage.place_count += 1
                if number < len(told):
                    damage.places.append(Place(str(subject.ref), file.filename, start, end, told[number]))
            room -= len(told)
    missing = {key: lost for key, (lost, _) in plan.chunks.items()}
    for each in plan.candidates:
        for found_chunk in each.chunks(list(missing.values())) if missing else ():
            key = found_chunk.lost.key
            plan.chunks[key][1].remedy = each.name
            missing.pop(key, None)


def _archives(subject: Subject) -> dict[str, ArchiveFiles]:
    """The archive that each file belongs to; none for a catalog."""
    try:
        return {file.filename: archive for archive in subject.snapshot.archives() for file in archive.files}
    except ArchiverError:
        return {}
