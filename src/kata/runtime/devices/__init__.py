"""Devices of the host that a guest gets: opened, hot-plugged, counted, unplugged."""
