"""Which groups a sync is about: the filters of ``archiver.store.filters``."""

from archiver.store.filters import GroupFilter, chosen

__all__ = ["GroupFilter", "chosen"]
