"""What a machine knows of tapes: drives, pools, media and their catalogs, as small durable files (spec tape.md 6)."""
