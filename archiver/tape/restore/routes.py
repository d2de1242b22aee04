"""Where what is on media goes: source stores to stores here, namespaces to namespaces (spec tape.md 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archiver.errors import ArchiverError, Damaged, UsageError
from archiver.store.layout import DEFAULT_OWNER, GroupRef, SnapshotRef, parse_reference
from archiver.store.store import Store
from formats.errors import FormatError
from formats.naming import MAX_NAMESPACE_DEPTH, check_namespace


@dataclass(frozen=True, slots=True)
class NamespaceRule:
    """What is in the namespace ``source`` of the source store (None: of any) goes into ``target``, as far as it is at
    most ``max_depth`` levels below."""

    source: str = ""
    target: str = ""
    max_depth: int = MAX_NAMESPACE_DEPTH
    store: str | None = None

    @classmethod
    def parse(cls, text: str) -> NamespaceRule:
        """``[store=NAME][,source=NS][,target=NS][,max-depth=N]``. Raises UsageError."""
        hint = "write for example source=a/b,target=c, or store=NAME,max-depth=0"
        fields: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = part.partition("=")
            if not equals or key not in ("store", "source", "target", "max-depth") or key in fields:
                raise UsageError(f"{text!r} is no rule for namespaces", hint=hint)
            fields[key] = value.strip("/")
        depth = fields.get("max-depth", str(MAX_NAMESPACE_DEPTH))
        if not depth.isascii() or not depth.isdigit() or int(depth[:3]) > MAX_NAMESPACE_DEPTH:
            raise UsageError(f"max-depth {depth!r} is no number of levels", hint=f"at most {MAX_NAMESPACE_DEPTH}")
        source, target = fields.get("source", ""), fields.get("target", "")
        for namespace in (source, target):
            try:
                check_namespace(namespace)
            except FormatError as error:
                raise UsageError(f"{namespace!r} is no namespace: {error}", hint=hint) from error
        return cls(source, target, int(depth), fields.get("store"))

    def apply(self, store: str, namespace: str) -> str | None:
        """Where ``namespace`` goes by this rule; None when it is not about it."""
        if self.store not in (None, store):
            return None
        parts, prefix = _parts(namespace), _parts(self.source)
        below = parts[len(prefix) :]
        if parts[: len(prefix)] != prefix or len(below) > self.max_depth:
            return None
        return "/".join(_parts(self.target) + below)


def _parts(namespace: str) -> list[str]:
    return namespace.split("/") if namespace else []


@dataclass(frozen=True, slots=True)
class Selected:
    """A snapshot that was asked for; ``store`` None: of whichever source store."""

    store: str | None
    ref: SnapshotRef

    @classmethod
    def parse(cls, text: str) -> Selected:
        """``[STORE:][ns/NAME/]TYPE/ID/TIME``. Raises UsageError."""
        store, colon, path = text.partition(":")
        if not colon or "/" in store:
            store, path = "", text
        ref = parse_reference(path)
        if not isinstance(ref, SnapshotRef):
            raise UsageError(f"{text!r} is a group, not a snapshot", hint="write [STORE:][ns/NAME/]TYPE/ID/TIME")
        return cls(store or None, ref)

    def is_it(self, store: str, ref: SnapshotRef) -> bool:
        return self.store in (None, store) and self.ref == ref


@dataclass(frozen=True, slots=True)
class Routes:
    """``stores``: by the names of source stores; ``default``: for all others, None: these are left out. Without rules
    for namespaces each keeps its own. ``selected``: only these snapshots; empty: all."""

    stores: Mapping[str, Store]
    default: Store | None = None
    namespaces: Sequence[NamespaceRule] = ()
    selected: Sequence[Selected] = ()
    owner: str = DEFAULT_OWNER

    def store(self, source: str) -> Store | None:
        return self.stores.get(source, self.default)

    def all_stores(self) -> list[Store]:
        """Each once."""
        found = [*self.stores.values(), *([self.default] if self.default is not None else [])]
        return list({id(store): store for store in found}.values())

    @property
    def is_whole(self) -> bool:
        """Whether all of a media set is asked for, as far as stores have a place."""
        return not self.selected and not self.namespaces

    def targets(self, source: str, ref: SnapshotRef) -> tuple[SnapshotRef, ...]:
        """What a snapshot becomes; nothing when it was not asked for."""
        if self.selected and not any(each.is_it(source, ref) for each in self.selected):
            return ()
        if not self.namespaces:
            return (ref,)
        found = []
        for rule in self.namespaces:
            namespace = rule.apply(source, ref.group.namespace)
            if namespace is not None:
                with_place = SnapshotRef(GroupRef(namespace, ref.group.type, ref.group.id), ref.time)
                if with_place not in found:
                    found.append(with_place)
        for each in found:
            try:
                check_namespace(each.group.namespace)
            except FormatError as error:
                raise UsageError(f"{ref} cannot go into {each.group.namespace}: {error}") from error
        return tuple(found)


def snapshot_on_medium(path: str) -> SnapshotRef:
    """The snapshot that a medium names so. Raises Damaged for anything that cannot be one."""
    try:
        ref = parse_reference(path)
        if isinstance(ref, SnapshotRef) and ref.path == path:
            return ref
    except ArchiverError:
        pass
    raise Damaged(f"the medium names a snapshot {path!r}, which cannot be one")
