"""Changers: who brings media into a drive (spec tape.md 5)."""
