"""Pages about a job's runs and stores, each complete in itself: no script, nothing that is loaded from elsewhere."""
