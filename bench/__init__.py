"""Measurements that are taken side by side in one run: `make bench`."""
