"""A prisoner in the real jail tries to break out of it: what it tried, and which layer stopped it."""
