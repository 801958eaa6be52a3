"""This project's own call to its agent, beside Kata's services: live through a container once, for practice.

A machine that waits for its sandbox makes it, so that the sandbox finds everything translated and in memory. Request
and response are empty; the call is only good before CreateSandbox.
"""

SERVICE = "kata.Standby"
WARM_UP = "WarmUp"
