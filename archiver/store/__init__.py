"""One datastore: layout, chunks, snapshots, sessions, and the LMDB index over them."""
