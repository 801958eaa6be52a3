"""reboot(2). As PID 1 of a guest this ends the VM; elsewhere it must not be called."""

import os

from kata.linux.libc import LIBC, check

_RB_POWER_OFF = 0x4321FEDC


def power_off() -> None:
    """Flush the file systems and power off. Raises OSError."""
    os.sync()
    check(LIBC.reboot(_RB_POWER_OFF), "reboot")
