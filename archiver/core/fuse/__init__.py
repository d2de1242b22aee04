"""File systems of our own, spoken to the kernel directly: no library in between."""
