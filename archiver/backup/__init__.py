"""Making snapshots: streams cut into chunks, archive writers, and the run that publishes them."""
