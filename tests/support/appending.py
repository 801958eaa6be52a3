"""Appending to a file while another program asks for its length, as `tail -f` and `ls -l` do."""

from __future__ import annotations

ROUNDS, RECORDS = 3, 1000


def script(directory: str) -> str:
    """A script for busybox's shell that appends in a directory, and prints how many records are lost in each round.

    One process writes and the other one asks, by commands of the shell itself: a program of its own takes an emulated
    guest longer than what is to be caught.
    """
    return f"""
        mkdir -p {directory}; cd {directory}
        for round in $(seq {ROUNDS}); do
            exec 3>>log$round
            while [ ! -e done$round ]; do [ -s log$round ]; done &
            i=0; while [ $i -lt {RECORDS} ]; do echo 123456789 >&3; i=$((i + 1)); done
            exec 3>&-; : >done$round; wait
            echo $(({RECORDS} - $(grep -c '^123456789$' log$round)))
        done
    """


def lost(output: str) -> int:
    """Records that are lost, of all rounds of what the script has printed."""
    counts = [int(line) for line in output.split()]
    assert len(counts) == ROUNDS, output
    return sum(counts)
