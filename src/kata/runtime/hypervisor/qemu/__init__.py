"""QEMU: its command line (pure), its process and confinement, QMP, hot-plug. Only the factory imports it."""
