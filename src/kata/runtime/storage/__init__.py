"""Rootfs and volumes: what a container sees of the host, and how the guest gets it."""
