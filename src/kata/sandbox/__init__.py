"""The core: sandbox, container, process, and the ledger of what they hold. Front ends drive it; it knows none."""
