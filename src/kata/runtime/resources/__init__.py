"""Resources: the size of a sandbox's VM, and its cgroup on the host, as its containers' limits ask for."""
