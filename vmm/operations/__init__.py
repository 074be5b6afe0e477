"""The outer side of a run: files, requests, and reports that are decoded as hostile input."""
