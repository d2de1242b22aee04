"""Telling a person: what is said when, and the ways to say it."""
