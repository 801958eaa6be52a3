"""The typed client of the agent in the guest."""
