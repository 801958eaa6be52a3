"""The agent's and the guest's metrics as Prometheus text, under Kata's names, from /proc (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")

_CPU_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
_NET_COLUMNS = (
    "recv_bytes", "recv_packets", "recv_errs", "recv_drop", "recv_fifo", "recv_frame", "recv_compressed",
    "recv_multicast", "sent_bytes", "sent_packets", "sent_errs", "sent_drop", "sent_fifo", "sent_colls",
    "sent_carrier", "sent_compressed",
)  # fmt: skip
_DISK_COLUMNS = (
    "reads", "merged", "sectors_read", "time_reading", "writes", "writes_merged", "sectors_written", "time_writing",
    "in_progress", "time_in_progress", "weighted_time_in_progress",
)  # fmt: skip

Sample = tuple[Mapping[str, str], float]


class Metrics:
    """Counts scrapes, and reads everything else anew for each."""

    def __init__(self) -> None:
        self._scrapes = 0

    def render(self) -> str:
        """All metrics as text."""
        self._scrapes += 1
        lines: list[str] = []
        for name, kind, text, samples in _families(self._scrapes):
            lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
            lines += (_line(name, labels, value) for labels, value in samples)
        return "\n".join(lines) + "\n"


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{shown}}} {value:.17g}" if shown else f"{name} {value:.17g}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _families(scrapes: int) -> Iterator[tuple[str, str, str, list[Sample]]]:
    stat = _process_stat()
    yield "kata_agent_scrape_count", "counter", "How often the metrics were asked for.", [({}, scrapes)]
    yield "kata_agent_threads", "gauge", "Threads of the agent.", [({}, stat["num_threads"])]
    yield "kata_agent_total_time", "gauge", "CPU time of the agent in seconds.", [
        ({}, (stat["utime"] + stat["stime"]) / _TICKS)
    ]  # fmt: skip
    yield "kata_agent_total_vm", "gauge", "Virtual memory of the agent in bytes.", [({}, stat["vsize"])]
    yield "kata_agent_total_rss", "gauge", "Resident memory of the agent in bytes.", [({}, stat["rss"] * _PAGE)]
    yield "kata_agent_proc_stat", "gauge", "The agent in /proc/PID/stat.", _items(stat)
    yield "kata_agent_proc_status", "gauge", "The agent in /proc/PID/status.", _items(_colon_file("/proc/self/status"))
    yield "kata_agent_io_stat", "gauge", "The agent in /proc/PID/io.", _items(_colon_file("/proc/self/io"))
    yield "kata_guest_load", "gauge", "Load averages of the guest.", _items(_load())
    yield "kata_guest_tasks", "gauge", "Tasks of the guest.", _items(_tasks())
    yield "kata_guest_cpu_time", "gauge", "CPU time of the guest in clock ticks.", list(_cpu_time())
    yield (
        "kata_guest_vm_stat",
        "gauge",
        "Virtual memory of the guest (/proc/vmstat).",
        _items(_pair_file("/proc/vmstat")),
    )
    yield "kata_guest_netdev_stat", "gauge", "Network devices of the guest.", list(_netdev())
    yield "kata_guest_diskstat", "gauge", "Disks of the guest.", list(_disks())
    yield "kata_guest_meminfo", "gauge", "Memory of the guest (/proc/meminfo).", _items(_colon_file("/proc/meminfo"))


def _items(values: Mapping[str, float]) -> list[Sample]:
    return [({"item": key}, value) for key, value in values.items()]


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


def _process_stat() -> dict[str, float]:
    # The name in the second field may hold anything, so the rest begins after its last parenthesis.
    fields = _lines("/proc/self/stat")[0].rpartition(") ")[2].split()
    names = {
        "utime": 11,
        "stime": 12,
        "cutime": 13,
        "cstime": 14,
        "num_threads": 17,
        "starttime": 19,
        "vsize": 20,
        "rss": 21,
    }
    return {name: float(fields[index]) for name, index in names.items()}


def _colon_file(path: str) -> dict[str, float]:
    """Numbers of "Name:  12 kB" lines as they stand; other lines say nothing that can be drawn."""
    values = {}
    for line in _lines(path):
        name, _, rest = line.partition(":")
        first = rest.split()[:1]
        if first and first[0].isdecimal():
            values[name.strip().lower()] = float(first[0])
    return values


def _pair_file(path: str) -> dict[str, float]:
    return {name: float(value) for name, value in (line.split() for line in _lines(path))}


def _load() -> dict[str, float]:
    one, five, fifteen, *_ = _lines("/proc/loadavg")[0].split()
    return {"load1": float(one), "load5": float(five), "load15": float(fifteen)}


def _tasks() -> dict[str, float]:
    running, _, total = _lines("/proc/loadavg")[0].split()[3].partition("/")
    return {"cur": float(running), "max": float(total)}


def _cpu_time() -> Iterator[Sample]:
    for line in _lines("/proc/stat"):
        if line.startswith("cpu"):
            cpu, *values = line.split()
            label = "total" if cpu == "cpu" else cpu.removeprefix("cpu")
            for name, value in zip(_CPU_COLUMNS, values, strict=False):
                yield {"cpu": label, "item": name}, float(value)


def _netdev() -> Iterator[Sample]:
    for line in _lines("/proc/net/dev")[2:]:
        name, _, values = line.partition(":")
        for column, value in zip(_NET_COLUMNS, values.split(), strict=False):
            yield {"interface": name.strip(), "item": column}, float(value)


def _disks() -> Iterator[Sample]:
    for line in _lines("/proc/diskstats"):
        _, _, name, *values = line.split()
        for column, value in zip(_DISK_COLUMNS, values, strict=False):
            yield {"disk": name, "item": column}, float(value)
