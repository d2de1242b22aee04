"""Trees as one file: tar, zip, pxar. Contents come from checked chunks, in the order of the archive."""
