"""Reading a job's profile: one TOML file in the user's configuration directory or the system's (README has all keys).

That looks at nothing but the file: a source or a drive that is not there now is no mistake in it. Every mistake is
found in one reading.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from archiver.backup.specification import ArchiveSpec, check_names, form_of
from archiver.browse.verify_result import Budget
from archiver.core.disk import read_at
from archiver.errors import ArchiverError, NotFound, UsageError
from archiver.jobs.history import checked_home
from archiver.jobs.notify.channels import check_address
from archiver.jobs.notify.web import check_url
from archiver.jobs.profile import (
    CHANNELS,
    COPY,
    OCCASIONS,
    Channel,
    CryptMode,
    Drill,
    Guard,
    Hook,
    Key,
    MaxAge,
    Mode,
    Policy,
    Power,
    Profile,
    Schedule,
    Sources,
    Sync,
    Tape,
    Verify,
    When,
)
from archiver.jobs.tables import File, Origin, Problem, Table, full_path
from archiver.keys.ring import configuration
from archiver.source.image import STANDARD_INPUT
from archiver.store.filters import GroupFilter
from archiver.store.layout import DEFAULT_OWNER
from archiver.store.prune import Keep
from archiver.store.retention import Duration, Retention
from archiver.sync.rate import parse_rate
from formats.naming import check_backup_id, check_namespace, check_owner
from formats.patterns import parse_exclude_option

SYSTEM = "/etc/archiver"
ENDING = ".toml"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_LARGEST = 1 << 20  # bytes
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_AT = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
_ALL = Budget()
_TO = {
    "mail": "the address to write to",
    "webhook": "the URL to post to",
    "command": "what a shell is to run",
    "heartbeat": "the URL that is asked for after each good run",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A profile that was read, ``None`` when anything in it is wrong, and where each value is from."""

    name: str
    path: str
    profile: Profile | None
    problems: tuple[Problem, ...]
    origins: Mapping[str, Origin]


class ProfileProblem(UsageError):
    """Every mistake of a profile."""

    code = "profile"

    def __init__(self, loaded: Loaded) -> None:
        errors = [problem for problem in loaded.problems if problem.is_error]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{errors[0]}{more}", hint=f"nothing was done; see: archiver job check {loaded.name}")
        self.problems = errors


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


def load(name: str, path: str) -> Profile:
    """Raises ProfileProblem with every mistake in it."""
    loaded = read(name, path)
    if loaded.profile is None:
        raise ProfileProblem(loaded)
    return loaded.profile


def read(name: str, path: str) -> Loaded:
    """The same with its mistakes as values; that it cannot be read is one, too."""
    found = _contents(path)
    if isinstance(found, Problem):
        return Loaded(name, path, None, (found,), {})
    data, problem = found
    file = File.parse(path, data)
    profile = None
    if not file.problems:
        if problem is not None:
            file.problems.append(problem)
        profile = _profile(name, file, data)
    problems = tuple(sorted(file.problems, key=lambda problem: problem.line or 0))
    return Loaded(name, path, None if file.errors else profile, problems, file.origins)


def _contents(path: str) -> tuple[bytes, Problem | None] | Problem:
    """Also what is wrong with who may write it: a profile has commands in it that are run."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return Problem(path, None, "this is not a regular file")
            data = read_at(fd, _LARGEST + 1)
        finally:
            os.close(fd)
    except OSError as error:
        return Problem(path, None, f"this cannot be read: {(error.strerror or str(error)).lower()}")
    if len(data) > _LARGEST:
        return Problem(path, None, f"this is larger than {_LARGEST >> 20} MiB, which no profile is")
    if status.st_mode & stat.S_IWOTH:
        return data, Problem(path, None, "everybody may write it, and it has commands in it: allowed is chmod o-w")
    if status.st_uid not in (0, os.geteuid()):
        return data, Problem(path, None, "it belongs to somebody else: allowed are its user's own files and root's")
    return data, None


def _profile(name: str, file: File, data: bytes) -> Profile:
    root = file.table
    stores = _stores(root)
    drill, schedule = root.optional("drill"), root.optional("schedule")
    profile = Profile(
        name=name,
        path=file.path,
        data=data,
        stores=stores,
        namespace=root.parsed("namespace", _namespace, "", "") or "",
        backup_type=root.choice("type", ("host", "ct", "vm"), "host") or "host",
        backup_id=_backup_id(root),
        owner=root.parsed("owner", _owner, DEFAULT_OWNER, DEFAULT_OWNER) or DEFAULT_OWNER,
        note=root.text("note"),
        key=_key(root.table("key")),
        sources=_sources(root),
        retention=_retention(root.table("keep")),
        gc_every=_gc(root.table("gc")),
        verify=_verify(root.table("verify")),
        syncs=tuple(_sync(table, stores) for table in root.tables("sync")),
        tapes=tuple(map(_tape, root.tables("tape"))),
        drill=None if drill is None else _drill(drill),
        hooks=tuple(map(_hook, root.tables("hook"))),
        max_age=_max_age(root.table("max-age")),
        power=_power(root.table("power")),
        schedule=None if schedule is None else _schedule(schedule),
        guard=_guard(root.table("guard")),
        channels=tuple(map(_channel, root.tables("notify"))),
    )
    root.end()
    return profile


def _stores(root: Table) -> tuple[str, ...]:
    one, several = root.path("store"), root.texts("stores", full_path, "store")
    if "store" in root and "stores" in root:
        root.tell("stores", "store and stores are both given; one of them is allowed")
    stores = several or ((one,) if one is not None else ())
    if not stores and "store" not in root and "stores" not in root:
        root.tell(None, 'store is missing: the directory of the store to back up into, such as store = "/mnt/backup"')
    if len(set(stores)) < len(stores):
        root.tell("stores", "stores names one of them twice; each is allowed once")
    return stores


def _namespace(text: str) -> str:
    namespace = text.strip("/")
    check_namespace(namespace)
    return namespace


def _owner(text: str) -> str:
    check_owner(text)
    return text


def _backup_id(root: Table) -> str:
    def check(text: str) -> str:
        check_backup_id(text)
        return text

    if "id" in root:
        return root.parsed("id", check) or ""
    from archiver.backup.run import default_backup_id

    name = default_backup_id()
    root.text("id", name, origin=Origin(name, "machine", source="the name of this machine"))
    return name


def _key(table: Table) -> Key:
    key = Key(
        table.path("file"),
        cast("CryptMode | None", table.choice("crypt", ("none", "encrypt", "sign-only"), None)),
        table.path("passphrase-file"),
        table.text("passphrase-command"),
        table.path("master-public"),
    )
    if key.passphrase_file is not None and key.passphrase_command is not None:
        table.tell("passphrase-command", "a passphrase file and a command are both given; one of them is allowed")
    if key.crypt == "none" and key.file is not None:
        table.tell("crypt", 'crypt is "none", but a key file is named; without it none is allowed')
    table.end()
    return key


def _sources(root: Table) -> Sources:
    specs = list(root.texts("sources", _source))
    commands = root.table("stdin-from-command")
    for archive, command in commands.pairs():
        try:
            spec = form_of(f"{archive}:-")
            if spec.kind != "image":
                raise UsageError(f"{archive!r} is no name of an image", hint='write for example "database.img"')
            specs.append(ArchiveSpec(spec.name, STANDARD_INPUT, spec.extension, command))
        except ArchiverError as error:
            commands.tell(archive, f"{error}; {error.hint}")
    if not specs and "sources" not in root and "stdin-from-command" not in root:
        root.tell(None, 'sources is missing: what is to be saved, such as sources = ["/home"]')
    elif not specs and not root.file.errors:
        root.tell("sources", "sources is empty; at least one source is allowed")
    _check_archives(root, specs)
    sources = Sources(
        tuple(specs),
        root.texts("exclude", lambda text: parse_exclude_option(os.fsencode(text))),
        root.flag("exclude-caches", False),
        root.flag("all-file-systems", False),
        root.texts("include-dev", full_path),
        cast("Mode", root.choice("mode", ("metadata", "data", "legacy"), "metadata") or "metadata"),
        root.percent("audit", 0.0),
    )
    if sources.all_file_systems and sources.include_dev:
        root.tell("include-dev", "include-dev and all-file-systems are both given; one of them is allowed")
    return sources


def _source(text: str) -> ArchiveSpec:
    """As backup takes it, with a path that means the same wherever the run starts."""
    name, colon, path = text.partition(":")
    if colon and not os.path.isabs(text) and not text.startswith("~"):
        if path == STANDARD_INPUT:
            raise UsageError(f"{text!r} is standard input, which no job has", hint="see [stdin-from-command]")
        return form_of(f"{name}:{full_path(path)}")
    return form_of(full_path(text))


def _check_archives(root: Table, specs: list[ArchiveSpec]) -> None:
    try:
        check_names(specs)
    except UsageError as error:
        root.tell("sources", f"sources: {error}; {error.hint}")
    if any(spec.archive == COPY for spec in specs):
        root.tell("sources", f"sources: {COPY} is the copy of this profile in each snapshot; another name is allowed")


def _retention(table: Table) -> Retention:
    counts = {name: table.count(name, None) for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")}
    retention = Retention(Keep(**counts), table.parsed("within", Duration.parse))
    table.end()
    return retention


def _gc(table: Table) -> int | None:
    enabled, every = table.flag("enabled", True), table.span("every", "7d")
    table.end()
    return every if enabled else None


def _verify(table: Table) -> Verify | None:
    enabled, every = table.flag("enabled", True), table.span("every", "1d")
    budget = table.parsed("budget", _budget, Budget(seconds=600), "10m")
    table.end()
    return Verify(every or 0, None if budget == _ALL else budget) if enabled else None


def _budget(text: str) -> Budget:
    return _ALL if text == "all" else Budget.parse(text)


def _sync(table: Table, stores: tuple[str, ...]) -> Sync:
    table.demand("target", "the directory of the store to copy to")
    sync = Sync(
        target=table.path("target") or "",
        every=table.span("every", "1d") or 0,
        max_age=table.age("max-age", "30d"),
        to_namespace=table.parsed("to-namespace", _namespace, "", "") or "",
        filters=table.texts("groups", GroupFilter.parse),
        transfer_last=table.count("transfer-last", None),
        verified_only=table.flag("verified-only", False),
        remove_vanished=table.flag("remove-vanished", False),
        rate=table.parsed("rate", parse_rate),
    )
    if sync.target in stores:
        table.tell("target", f"{table.name('target')} is the store itself; another store is allowed")
    table.end()
    return sync


def _tape(table: Table) -> Tape:
    table.demand("pool", "the pool of media to copy to")
    every, max_age = table.span("every", "7d") or 0, table.age("max-age", "60d")
    tape = Tape(table.text("pool") or "", table.text("drive"), every, max_age)
    table.end()
    return tape


def _drill(table: Table) -> Drill:
    drill = Drill(
        every=table.span("every", "30d") or 0,
        files=table.count("files", 20, most=10_000) or 20,
        size=(table.count("mebibytes", 256, most=1 << 20) or 256) << 20,
        scratch=table.path("scratch"),
    )
    table.end()
    return drill


def _hook(table: Table) -> Hook:
    table.demand("when", "before, after, on-failure or finally")
    table.demand("command", "what a shell is to run")
    hook = Hook(
        cast("When", table.choice("when", ("before", "after", "on-failure", "finally"), None) or "finally"),
        table.text("command") or "",
        table.flag("required", False),
        table.span("timeout", "1h") or 0,
    )
    table.end()
    return hook


def _max_age(table: Table) -> MaxAge:
    ages = MaxAge(table.age("snapshot", "3d"), table.age("verify", "30d"), table.age("drill", "90d"))
    table.end()
    return ages


def _power(table: Table) -> Power:
    power = Power(
        cast("Policy", table.choice("on-battery", ("skip", "run"), "skip") or "skip"),
        table.count("min-charge", 30, least=0, most=100) or 0,
        cast("Policy", table.choice("metered", ("skip", "run"), "run") or "run"),
    )
    table.end()
    return power


def _schedule(table: Table) -> Schedule:
    table.demand("at", 'a time of day such as at = "02:00"')
    days = table.texts("days", _day)
    schedule = Schedule(
        tuple(sorted(set(table.texts("at", _time_of_day, "time of day")))),
        tuple(day for day in _DAYS if day in days),
        table.span("delay", "30m") or 0,
        table.flag("on-plug", False),
    )
    table.end()
    return schedule


def _time_of_day(text: str) -> tuple[int, int]:
    found = _AT.fullmatch(text)
    if found is None:
        raise ValueError("a time of day such as 02:00 or 21:30")
    return int(found[1]), int(found[2])


def _day(text: str) -> str:
    if text.lower() not in _DAYS:
        raise ValueError(" or ".join(_DAYS))
    return text.lower()


def _guard(table: Table) -> Guard:
    guard = Guard(table.flag("enabled", True), table.percent("share", 30.0))
    table.end()
    return guard


def _channel(table: Table) -> Channel:
    kind = table.choice("kind", CHANNELS, None)
    table.demand("kind", " or ".join(CHANNELS))
    to = table.text("to")
    if kind == "desktop" and to is not None:
        table.tell("to", f"{table.name('to')} is for other kinds: the desktop needs no address")
    if kind in _TO:
        table.demand("to", _TO[kind])
    if kind in ("webhook", "heartbeat") and to is not None:
        if to.startswith(("http://", "https://")):
            _check_to(table, check_url, to)
        else:
            table.tell("to", f"{table.name('to')} is no URL: one with https:// or http:// is allowed")
    elif kind == "mail" and to is not None:
        _check_to(table, check_address, to)
    on = table.texts("on", _occasion, "of " + ", ".join(OCCASIONS)) or OCCASIONS[:3]
    table.end()
    return Channel(kind or "desktop", to, on)


def _check_to(table: Table, check: Callable[[str], str], to: str) -> None:
    try:
        check(to)
    except UsageError as error:
        table.tell("to", f"{table.name('to')}: {error}; {error.hint}")


def _occasion(text: str) -> str:
    if text not in OCCASIONS:
        raise ValueError(" or ".join(OCCASIONS))
    return text
