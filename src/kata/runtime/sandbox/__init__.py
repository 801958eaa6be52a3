"""The core: sandbox, container, process. Front ends drive it; it knows none."""
