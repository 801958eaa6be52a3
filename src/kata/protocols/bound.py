"""Metadata of an ExecProcess call by which the process ends with the caller's connection, not only by itself.

Only a sandbox's agent socket on the host knows it; an agent ignores it.
"""

KEY = "kata-ends-with"
CONNECTION = "connection"
