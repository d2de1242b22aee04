"""The tape format of PBS (spec tape.md 2, 8): blocks, labels, archives and media catalogs as bytes."""
