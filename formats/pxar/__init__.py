"""The pxar archive format, versions 1 (one stream) and 2 (metadata and payload streams). Source: spec pxar.md."""
