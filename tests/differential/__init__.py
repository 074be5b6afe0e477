"""Our answers against those of the installed qemu-img, number for number."""
