"""Copying between two stores: a plan first, then chunks, then snapshots in the order of their times."""
