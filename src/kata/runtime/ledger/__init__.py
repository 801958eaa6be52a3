"""The ledger: what a sandbox holds outside its own process, and how it is released."""
