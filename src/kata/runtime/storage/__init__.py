"""Rootfs and volumes: what of the host a container sees, and how it gets into the virtual machine."""
