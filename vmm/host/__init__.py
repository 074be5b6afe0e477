"""System calls that Python's os module lacks, and what needs them: holes in files, files put in place, a guard."""
