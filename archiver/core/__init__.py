"""The machine: durable writes, locks, clock, randomness, events, threads, Linux metadata calls."""
