"""What /proc says of a process and of a system (proc(5)), under the names of Kata's label `item`.

Files are read up to a limit each, since the length of some is up to others, and a number of entries at most is taken.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping

#: Bytes of a file that are read.
_MAX_FILE = 256 << 10
#: CPUs, network interfaces and disks each of which has samples of its own.
_MAX_ENTRIES = 64

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")

_CPU = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
_NET = (
    "recv_bytes", "recv_packets", "recv_errs", "recv_drop", "recv_fifo", "recv_frame", "recv_compressed",
    "recv_multicast", "sent_bytes", "sent_packets", "sent_errs", "sent_drop", "sent_fifo", "sent_colls",
    "sent_carrier", "sent_compressed",
)  # fmt: skip
_DISK = (
    "reads", "merged", "sectors_read", "time_reading", "writes", "writes_merged", "sectors_written", "time_writing",
    "in_progress", "time_in_progress", "weighted_time_in_progress", "discards", "discards_merged",
    "sectors_discarded", "time_discarding", "flushes", "time_flushing",
)  # fmt: skip
_STATUS = (
    "vmpeak", "vmsize", "vmlck", "vmpin", "vmhwm", "vmrss", "rssanon", "rssfile", "rssshmem", "vmdata", "vmstk",
    "vmexe", "vmlib", "vmpte", "vmpmd", "vmswap", "hugetlbpages", "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
)  # fmt: skip
#: Of /proc/PID/stat, by the number of the field after the name.
_STAT = {"utime": 11, "stime": 12, "cutime": 13, "cstime": 14}
_THREADS, _START, _VSIZE, _RSS = 17, 19, 20, 21
#: Where Kata's name of an entry of /proc/meminfo is not the entry's in lower case with underscores.
_MEMINFO = {"Percpu": "per_cpu"}

#: Labels and value.
Sample = tuple[Mapping[str, str], float]


def items(values: Mapping[str, float]) -> list[Sample]:
    """A sample for each, with the label `item`."""
    return [({"item": name}, value) for name, value in values.items()]


def one(value: float) -> list[Sample]:
    """A sample without labels."""
    return [({}, value)]


class Process:
    """One look at a process. Raises OSError when it is made for one that has ended.

    Attributes:
        threads: how many.
        cpu_seconds: of CPU time, user and system.
        virtual_bytes, resident_bytes: of memory.
        started: seconds since the system's boot.
        times: `utime`, `stime`, `cutime` and `cstime`, in clock ticks.
    """

    def __init__(self, pid: int | str = "self") -> None:
        self._directory = f"/proc/{pid}"
        # The name in the second field may hold anything, so the rest begins after its last parenthesis.
        fields = _read(f"{self._directory}/stat").rpartition(") ")[2].split()
        self.times = {name: float(fields[index]) for name, index in _STAT.items()}
        self.threads = int(fields[_THREADS])
        self.cpu_seconds = (self.times["utime"] + self.times["stime"]) / TICKS
        self.started = int(fields[_START]) / TICKS
        self.virtual_bytes = int(fields[_VSIZE])
        self.resident_bytes = int(fields[_RSS]) * PAGE

    def status(self, *, unit: int = 1) -> dict[str, float]:
        """Memory in KiB, or in bytes if `unit` is 1024, and context switches. Raises OSError."""
        found = _colons(_read(f"{self._directory}/status"), str.lower, unit)
        return {name: found[name] for name in _STATUS if name in found}

    def io(self) -> dict[str, float]:
        """Bytes and system calls of reads and writes. Raises OSError."""
        return _colons(_read(f"{self._directory}/io"), str)

    def descriptors(self) -> int:
        """How many are open. Raises OSError."""
        return len(os.listdir(f"{self._directory}/fd"))

    def network(self) -> list[Sample]:
        """The interfaces of its network namespace. Raises OSError."""
        return _network(_read(f"{self._directory}/net/dev"))

    def proportional_bytes(self) -> int:
        """Memory, of which what it shares counts by its share (smaps_rollup). Raises OSError."""
        return int(_colons(_read(f"{self._directory}/smaps_rollup"), str, 1024).get("Pss", 0))


def own_process() -> dict[str, float]:
    """What Prometheus' clients tell of their process, of this one; -1 where there is no limit."""
    process = Process()
    return {
        "cpu_seconds_total": process.cpu_seconds,
        "open_fds": process.descriptors(),
        "max_fds": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "resident_memory_bytes": process.resident_bytes,
        "virtual_memory_bytes": process.virtual_bytes,
        "virtual_memory_max_bytes": resource.getrlimit(resource.RLIMIT_AS)[0],
        "start_time_seconds": boot_time() + process.started,
    }


def load() -> dict[str, float]:
    """Load averages."""
    one, five, fifteen, *_ = _read("/proc/loadavg").split()
    return {"load1": float(one), "load5": float(five), "load15": float(fifteen)}


def tasks() -> dict[str, float]:
    """Tasks that are runnable, and all."""
    runnable, _, total = _read("/proc/loadavg").split()[3].partition("/")
    return {"cur": float(runnable), "max": float(total)}


def cpu_time() -> list[Sample]:
    """CPU time in clock ticks, of each CPU and in total."""
    lines = [line.split() for line in _read("/proc/stat").splitlines() if line.startswith("cpu")]
    return [
        ({"cpu": "total" if name == "cpu" else name.removeprefix("cpu"), "item": item}, float(value))
        for name, *values in lines[: _MAX_ENTRIES + 1]
        for item, value in zip(_CPU, values, strict=False)
    ]


def memory() -> dict[str, float]:
    """/proc/meminfo in bytes; huge pages are counted."""
    return _colons(_read("/proc/meminfo"), _meminfo_name, 1024)


def virtual_memory() -> dict[str, float]:
    """/proc/vmstat."""
    pairs = (line.split() for line in _read("/proc/vmstat").splitlines())
    return {name: float(value) for name, value in pairs}


def network() -> list[Sample]:
    """The interfaces of the calling process's network namespace."""
    return _network(_read("/proc/self/net/dev"))


def disks() -> list[Sample]:
    """/proc/diskstats."""
    lines = (line.split()[2:] for line in _read("/proc/diskstats").splitlines()[:_MAX_ENTRIES])
    return list(_columns("disk", ((name, values) for name, *values in lines), _DISK))


def boot_time() -> float:
    """When the system was booted, in seconds since 1970."""
    found = re.search(r"^btime (\d+)$", _read("/proc/stat"), re.MULTILINE)
    return float(found[1]) if found else 0.0


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_MAX_FILE)


def _colons(text: str, named: Callable[[str], str], unit: int = 1) -> dict[str, float]:
    """The numbers of lines such as "Name:  12 kB", which say nothing that can be drawn if there is none."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        value, *after = rest.split()[:2] or [""]
        if value.isdecimal():
            found[named(name.strip())] = float(value) * (unit if after == ["kB"] else 1)
    return found


def _meminfo_name(name: str) -> str:
    """Kata's name of an entry: `MemTotal` is `mem_total`, `Active(anon)` is `active_anon`."""
    if name in _MEMINFO:
        return _MEMINFO[name]
    if name.startswith("DirectMap"):
        return name.replace("DirectMap", "direct_map_")
    name = name.replace("HugePages", "Hugepages").replace("(", "_").replace(")", "")
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=^[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _network(text: str) -> list[Sample]:
    lines = (line.partition(":")[::2] for line in text.splitlines()[2 : 2 + _MAX_ENTRIES])
    return list(_columns("interface", ((name.strip(), values.split()) for name, values in lines), _NET))


def _columns(label: str, rows: Iterable[tuple[str, list[str]]], names: tuple[str, ...]) -> Iterator[Sample]:
    for row, values in rows:
        for name, value in zip(names, values, strict=False):
            yield {label: row, "item": name}, float(value)
