"""The OCI runtime specification: bundles, states, and what becomes of a spec on its way into the guest."""
