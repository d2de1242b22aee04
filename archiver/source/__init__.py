"""The live file system: walk, selection, metadata, contents; nothing here knows about archives or stores."""
