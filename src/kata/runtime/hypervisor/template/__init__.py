"""Templates: VMs that were booted once and saved, to restore others from."""
