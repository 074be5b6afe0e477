"""Writers of disk images, by the formats' own specifications: what qemu-img cannot or will not write."""
