"""The agent: PID 1 of the guest, which runs the sandbox's containers by the host's calls."""
