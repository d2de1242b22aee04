"""From a store onto media: what is new, in an order that reads the store sequentially and keeps a drive streaming."""
