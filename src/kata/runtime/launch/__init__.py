"""Launch: from a bundle to a VM whose agent answers, be it booted, restored, prelaunched or from standby."""
