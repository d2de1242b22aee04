"""Backups in the Proxmox Backup Server formats: one process, no server, an LMDB index over everything."""

__version__ = "0.1.0"
