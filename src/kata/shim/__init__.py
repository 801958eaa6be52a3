"""containerd-shim-kata-v2: containerd's door to the sandbox."""
