"""`make bench`: sandboxes side by side with runc and with bare QEMU, in one run on one host.

    figures.py      a figure, and how the runs of contenders alternate
    contenders.py   what is compared: a name and the options of `ctr run` for it
    stage.py        the private containerd that the parts measure on
    bare.py         QEMU alone, without a sandbox
    processes.py    which processes a sandbox has, and how much memory they use
    parts/          what is measured, one idea a file
    report.py       all of a run, as JSON
    text.py         the report as a table for a terminal, and in Markdown
    page.py         the report as one page of HTML; plot.py draws its plots, style.py has its style sheet
    machine.py      a description of the host

Only ratios within one run are comparable: hosts differ, and the speed of one host drifts. So the runs of the contenders
alternate. A figure is a median, of the time of whole commands or of the memory of all processes of a sandbox.
"""
