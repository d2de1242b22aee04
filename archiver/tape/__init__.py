"""Tape: drives, pools, the inventory, media-set catalogs, write and restore (spec tape.md)."""
