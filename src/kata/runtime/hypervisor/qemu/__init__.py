"""QEMU: its command line (pure), its confinement, its process."""
