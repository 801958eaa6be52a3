"""Settings: one table for TOML keys, annotations, defaults and documentation.

`settings` has the table and the frozen `Config`, `loader` reads files, `annotations` applies a pod's annotations,
`reference` writes the documentation. Not here: settings of the agent in the guest, which come on the kernel command
line.
"""
