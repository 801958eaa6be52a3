"""kata-monitor: the metrics of all sandboxes of a host for Prometheus, and a page for people.

It asks the sandboxes over their management sockets and changes nothing. What it shows of them may come from a hostile
guest: it is bounded and checked where it arrives, and the page takes it as text.
"""
