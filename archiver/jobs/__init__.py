"""Nightly runs: profiles, schedule, hooks, notification, report."""
