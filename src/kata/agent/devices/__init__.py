"""Hot-plugged devices: found by their address, given to a container by an update of its spec."""
