"""What runs a sandbox on the host. Nothing in here runs in the guest, or knows containerd or a command line."""
