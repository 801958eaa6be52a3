"""This project's own RPC of its agent: warm up by running a container once.

The host makes it in a VM in standby, so that its sandbox finds all code translated and in memory. Request and response
are empty; the call is valid only before CreateSandbox.
"""

SERVICE = "kata.Standby"
WARM_UP = "WarmUp"
