"""Keys and where passphrases come from."""
