"""The devices against a driver that is written from the standard."""
