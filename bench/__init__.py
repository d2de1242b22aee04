"""Side-by-side runs of this program, restic and borg on the same data: ``python -m bench``.

Reading order: ``datasets`` (what is backed up), ``peers`` (what is run), ``suite`` (in which order, what is checked),
``changes`` (what happens between backups), ``measure`` and ``database`` (how a run is measured), ``limit`` (the work
that no backup can avoid), ``report`` (the table). Measurements of single parts: ``chunker``, ``cuts``, ``churn``.
"""
