"""The machine: memory map, page tables, ELF loading, run loop, faults, snapshot and reset."""
