"""Coverage-guided fuzzing of the host's code that reads hostile bytes.  See ``fuzzing/README.md``."""
