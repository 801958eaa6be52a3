"""VMs: a plan says what one is (pure data), a VMM runs it."""
