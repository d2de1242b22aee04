"""Getting things out: a tree is written through directory descriptors, then read again and compared."""
