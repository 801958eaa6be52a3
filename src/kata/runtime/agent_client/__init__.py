"""The host's view of the guest: a typed client of the agent."""
