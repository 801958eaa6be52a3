"""containerd's side: the task and sandbox services of a shim, its events, its bootstrap, and cgroup metrics."""
