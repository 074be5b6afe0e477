//! What lies on a virtual disk: partition tables and file systems.
