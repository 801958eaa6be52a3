"""Devices that the host plugs in: found by where they are, made the container's by an update of its spec."""
