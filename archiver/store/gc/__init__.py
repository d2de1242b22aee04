"""Garbage collection: removing the chunks that nothing refers to (spec datastore.md 7). ``collect`` has the whole
argument why nothing else can go."""
