"""Media-set catalogs: which medium and file holds a snapshot or a chunk, an LMDB index over the catalog logs."""
