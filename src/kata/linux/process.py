"""prctl(2) settings of the calling process."""

from kata.linux.libc import LIBC, check

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def set_child_subreaper() -> None:
    """Orphans below this process become its children, so that it can wait for them (prctl(2))."""
    check(LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl PR_SET_CHILD_SUBREAPER")


def set_parent_death_signal(number: int) -> None:
    """Get this signal when the thread that made this process ends; 0 for none (prctl(2))."""
    check(LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl PR_SET_PDEATHSIG")
