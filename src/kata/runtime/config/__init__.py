"""Settings: one table for TOML keys, annotations, defaults and documentation.

`settings` holds the table and the frozen `Config`, `loader` reads files, `annotations` applies a pod's wishes,
`reference` writes the documentation. Not here: settings of the agent inside the guest (it has the kernel command line).
"""
