"""`make bench`: sandboxes side by side with runc and with bare QEMU, in one run on one machine.

    figures.py      a figure, and how the runs of contenders alternate
    contenders.py   who is measured: a name and what `ctr run` gets for it
    stage.py        the private containerd that the parts measure on
    bare.py         QEMU with nothing around it
    processes.py    which processes a sandbox has, and what they take
    parts/          what is measured, one idea a file
    report.py       all of a run, as JSON
    text.py         the report as a table for a terminal, and in Markdown
    page.py         the report as one page of HTML; plot.py draws its plots, style.py has its style sheet
    machine.py      what is said of the machine

What counts are the ratios within one run: machines differ, and the speed of one drifts. So the runs of the contenders
alternate, and a figure is the median of whole commands or of the memory of all processes of a sandbox.
"""
