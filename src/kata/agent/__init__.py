"""The guest's side: PID 1 of the virtual machine, which runs the sandbox's containers as the host asks it to."""
