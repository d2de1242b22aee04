"""The on-disk formats of Proxmox Backup Server as pure codecs: bytes to values and back.

No module here opens a file, reads a clock, logs or decides policy; randomness (IVs, uuids) comes in as an argument.
Everything that is wrong with input is a :class:`formats.errors.FormatError`.
"""
