"""A pod's network on the host: what is in its namespace, and how it is connected to the VM."""
