"""What reads and writes one medium: a directory (``virtual``) or a kernel tape node (``st``), behind one interface."""
