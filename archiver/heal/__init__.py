"""Putting back what is damaged or missing in a store, from where the same bytes are: a plan, and its doing."""
