"""The LMDB index over a store: answers questions fast, holds nothing that cannot be rebuilt from the files."""
