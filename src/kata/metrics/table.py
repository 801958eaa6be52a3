"""Every family of metrics: those that exist here, and those of Kata's that cannot, with the reason.

The one source of names, kinds and texts: what writes metrics takes them from here, what reads them takes no others,
and `python3 -m kata.metrics` prints the reference page from it. Names, labels and units are Kata Containers' (4.x,
docs/design/kata-2-0-metrics.md, which lists 127 families); `kata=False` marks what that list has not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True)
class Metric:
    """A family.

    Attributes:
        kind: `COUNTER`, `GAUGE` or `HISTOGRAM`.
        text: what it is.
        unit: of its values; "" if that depends on the item, or it counts something.
        labels: besides the sandbox's.
        kata: whether Kata documents it.
    """

    kind: str
    text: str
    unit: str = ""
    labels: tuple[str, ...] = ()
    kata: bool = True


_ITEM = ("item",)


def _process(prefix: str, whose: str, *, virtual_max: bool = True) -> dict[str, Metric]:
    """What Prometheus' clients tell of their process."""
    found = {
        "cpu_seconds_total": Metric(COUNTER, f"CPU time of {whose}, user and system.", "seconds"),
        "open_fds": Metric(GAUGE, f"Open file descriptors of {whose}."),
        "max_fds": Metric(GAUGE, f"File descriptors that {whose} may open."),
        "resident_memory_bytes": Metric(GAUGE, f"Resident memory of {whose}.", "bytes"),
        "start_time_seconds": Metric(GAUGE, f"Start of {whose}, since 1970.", "seconds"),
        "virtual_memory_bytes": Metric(GAUGE, f"Virtual memory of {whose}.", "bytes"),
    }
    if virtual_max:
        found["virtual_memory_max_bytes"] = Metric(GAUGE, f"Virtual memory that {whose} may have; -1: any.", "bytes")
    return {f"{prefix}_process_{name}": metric for name, metric in found.items()}


def _host_process(prefix: str, whose: str, *, kata: bool = True) -> dict[str, Metric]:
    """What a sandbox tells of one of its processes on the host."""
    found = {
        "threads": Metric(GAUGE, f"Threads of {whose}.", kata=kata),
        "fds": Metric(GAUGE, f"Open file descriptors of {whose}.", kata=kata),
        "proc_status": Metric(GAUGE, f"{_up(whose)} in /proc/PID/status; memory is in bytes.", "", _ITEM, kata),
        "proc_stat": Metric(GAUGE, f"CPU time of {whose} in /proc/PID/stat.", "clock ticks", _ITEM, kata),
        "io_stat": Metric(GAUGE, f"{_up(whose)} in /proc/PID/io.", "", _ITEM, kata),
    }
    return {f"{prefix}_{name}": metric for name, metric in found.items()}


def _up(text: str) -> str:
    return text[:1].upper() + text[1:]


#: What the agent answers.
GUEST: Mapping[str, Metric] = {
    "kata_agent_scrape_count": Metric(COUNTER, "How often the agent was asked for its metrics."),
    "kata_agent_threads": Metric(GAUGE, "Threads of the agent.", kata=False),
    "kata_agent_total_time": Metric(GAUGE, "CPU time of the agent.", "seconds"),
    "kata_agent_total_vm": Metric(GAUGE, "Virtual memory of the agent.", "bytes"),
    "kata_agent_total_rss": Metric(GAUGE, "Resident memory of the agent.", "bytes"),
    "kata_agent_proc_stat": Metric(GAUGE, "CPU time of the agent in /proc/PID/stat.", "clock ticks", _ITEM),
    "kata_agent_proc_status": Metric(GAUGE, "The agent in /proc/PID/status; memory is in KiB.", "", _ITEM),
    "kata_agent_io_stat": Metric(GAUGE, "The agent in /proc/PID/io.", "", _ITEM),
    **_process("kata_agent", "the agent", virtual_max=False),
    "kata_guest_load": Metric(GAUGE, "Load averages of the guest.", "", _ITEM),
    "kata_guest_tasks": Metric(GAUGE, "Runnable tasks of the guest, and all.", "", _ITEM),
    "kata_guest_cpu_time": Metric(GAUGE, "CPU time of the guest (/proc/stat).", "clock ticks", ("cpu", "item")),
    "kata_guest_vm_stat": Metric(GAUGE, "Virtual memory of the guest (/proc/vmstat).", "", _ITEM),
    "kata_guest_netdev_stat": Metric(GAUGE, "Network interfaces of the guest.", "", ("interface", "item")),
    "kata_guest_diskstat": Metric(GAUGE, "Disks of the guest (/proc/diskstats).", "", ("disk", "item")),
    "kata_guest_meminfo": Metric(GAUGE, "Memory of the guest (/proc/meminfo).", "bytes", _ITEM),
}

#: What a sandbox answers: its shim, which is the process of `kata run` where there is no containerd, and its VMM.
SANDBOX: Mapping[str, Metric] = {
    **_host_process("kata_shim", "the shim"),
    **_process("kata_shim", "the shim"),
    "kata_shim_rpc_durations_histogram_milliseconds": Metric(
        HISTOGRAM, "Durations of containerd's calls to the shim.", "milliseconds", ("action",)
    ),
    "kata_shim_agent_rpc_durations_histogram_milliseconds": Metric(
        HISTOGRAM, "Durations of the shim's calls to the agent.", "milliseconds", ("action",)
    ),
    "kata_shim_pod_overhead_cpu": Metric(
        GAUGE, "CPU time of the sandbox's processes that is not its containers', since the last scrape.", "percent"
    ),
    "kata_shim_pod_overhead_memory_in_bytes": Metric(
        GAUGE, "Memory of the sandbox's processes that is not its containers'.", "bytes"
    ),
    "kata_shim_agent_up": Metric(GAUGE, "Whether the agent answered with its metrics in time.", kata=False),
    "kata_shim_agent_dropped_samples": Metric(
        GAUGE, "Lines of the agent's last answer that were not taken.", kata=False
    ),
    **_host_process("kata_hypervisor", "the VMM"),
    "kata_hypervisor_netdev": Metric(
        GAUGE, "Interfaces of the VMM's network namespace, the pod's.", "", ("interface", "item")
    ),
    **_host_process("kata_virtiofsd", "virtiofsd", kata=False),
}

#: What kata-monitor tells of itself.
MONITOR: Mapping[str, Metric] = {
    "kata_monitor_running_shim_count": Metric(GAUGE, "Running sandboxes."),
    "kata_monitor_scrape_count": Metric(COUNTER, "How often the metrics were asked for."),
    "kata_monitor_scrape_failed_count": Metric(COUNTER, "How often a sandbox did not answer, or not in time."),
    "kata_monitor_scrape_durations_histogram_milliseconds": Metric(
        HISTOGRAM, "How long the answers of all sandboxes took.", "milliseconds"
    ),
    "kata_monitor_dropped_samples_total": Metric(COUNTER, "Lines of sandboxes that were not taken.", kata=False),
    **_process("kata_monitor", "kata-monitor"),
}

ALL: Mapping[str, Metric] = {**MONITOR, **SANDBOX, **GUEST}

_GO = "the Go runtime's own; this is Python, and `{}_process_*` tells of the process"
_FIRECRACKER = "Firecracker's own; the VMM here is QEMU"
_GO_NAMES = (
    "gc_duration_seconds", "goroutines", "info", "threads", "memstats_alloc_bytes", "memstats_alloc_bytes_total",
    "memstats_buck_hash_sys_bytes", "memstats_frees_total", "memstats_gc_cpu_fraction", "memstats_gc_sys_bytes",
    "memstats_heap_alloc_bytes", "memstats_heap_idle_bytes", "memstats_heap_inuse_bytes", "memstats_heap_objects",
    "memstats_heap_released_bytes", "memstats_heap_sys_bytes", "memstats_last_gc_time_seconds",
    "memstats_lookups_total", "memstats_mallocs_total", "memstats_mcache_inuse_bytes", "memstats_mcache_sys_bytes",
    "memstats_mspan_inuse_bytes", "memstats_mspan_sys_bytes", "memstats_next_gc_bytes", "memstats_other_sys_bytes",
    "memstats_stack_inuse_bytes", "memstats_stack_sys_bytes", "memstats_sys_bytes",
)  # fmt: skip
_FIRECRACKER_NAMES = (
    "api_server", "block", "get_api_requests", "i8042", "latencies_us", "logger", "mmds", "net", "patch_api_requests",
    "put_api_requests", "rtc", "seccomp", "signals", "uart", "vcpu", "vmm", "vsock",
)  # fmt: skip

#: Kata's families that do not exist here, and why.
ABSENT: Mapping[str, str] = {
    **{f"{whose}_go_{name}": _GO.format(whose) for whose in ("kata_monitor", "kata_shim") for name in _GO_NAMES},
    **{f"kata_firecracker_{name}": _FIRECRACKER for name in _FIRECRACKER_NAMES},
    "kata_shim_netdev": "a shim is in the host's network namespace: each sandbox would repeat every interface of the"
    " host; Kata's shim has stopped doing so, too",
}


def kinds(metrics: Mapping[str, Metric]) -> dict[str, tuple[str, str]]:
    """Kind and text by name, as `kata.metrics.exposition.read` wants them."""
    return {name: (metric.kind, metric.text) for name, metric in metrics.items()}
