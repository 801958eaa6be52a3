"""`make bench`: start, exec and memory of sandboxes, side by side with runc and with bare QEMU in one run.

Every figure is the wall time of a whole command, or the proportional memory of all processes of a sandbox. The runs of
the contenders alternate, so that a machine whose speed drifts treats them alike; what counts are the ratios. Prints a
table and writes the same as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from kata.config.loader import load
from kata.errors import KataError
from kata.hypervisor import accel
from kata.hypervisor.base import VmPlan
from kata.hypervisor.qemu.command import CONSOLE_FD, MEMORY_FD, QMP_FD, STATE_FD, command_line
from kata.hypervisor.template import Template, description, key_of, open_template
from kata.sandbox import plan as sandbox_plan
from kata.sandbox.ledger import STATE_ROOT, processes_of
from kata.sandbox.machine import WARM_UP
from kata.testing.containerd import PrivateContainerd
from kata.testing.images import BUSYBOX, busybox_archive
from kata.ttrpc.connection import Connection, Role
from kata.ttrpc.envelope import Request

IMAGE = BUSYBOX
KATA = "io.containerd.kata.v2"
RUNC = "io.containerd.runc.v2"

_BOOT_TIMEOUT_S = 60.0
#: What QMP has to be told for a restore; the state's descriptor is filled in.
_RESTORE = b"""
{"execute": "qmp_capabilities"}
{"execute": "migrate-set-capabilities",
 "arguments": {"capabilities": [{"capability": "x-ignore-shared", "state": true}]}}
{"execute": "migrate-incoming", "arguments": {"uri": "fd:%d"}}
"""


@dataclass(frozen=True)
class Figure:
    """What was measured of one contender.

    Attributes:
        values: seconds, or MiB for memory, one for each run.
    """

    name: str
    contender: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def alternate(runs: int, actions: Mapping[str, Callable[[], float]]) -> dict[str, tuple[float, ...]]:
    """Measure each action `runs` times, in turn, after one run of each that does not count."""
    for action in actions.values():
        action()
    measured: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(runs):
        for name, action in actions.items():
            measured[name].append(action())
    return {name: tuple(values) for name, values in measured.items()}


def bare_qemu(plan: VmPlan, saved: Template | None = None) -> float:
    """Seconds from QEMU's execution to the agent's answer to a health check: a boot, or a restore of what was saved,
    with nothing around it."""
    with ExitStack() as stack:
        ends = {name: socket.socketpair() for name in (QMP_FD, CONSOLE_FD, *plan.channels)}
        for ours, theirs in ends.values():
            stack.callback(ours.close)
            stack.callback(theirs.close)
        fds = {name: theirs.fileno() for name, (_, theirs) in ends.items()}
        if saved:
            fds |= {MEMORY_FD: saved.memory, STATE_FD: saved.state}
            os.lseek(saved.state, 0, os.SEEK_SET)
        begin = time.perf_counter()
        process = subprocess.Popen(command_line(plan, fds), pass_fds=tuple(fds.values()), stdin=subprocess.DEVNULL)
        stack.callback(process.wait)
        stack.callback(process.kill)
        if saved:
            ends[QMP_FD][0].sendall(_RESTORE % saved.state)
        channel = ends[sandbox_plan.AGENT_CHANNEL][0]
        channel.settimeout(_BOOT_TIMEOUT_S)
        channel.sendall(Connection(Role.CLIENT).request(Request("grpc.Health", "Check"))[1])
        if not channel.recv(1):
            raise RuntimeError("bare QEMU ended before the agent answered")
        return time.perf_counter() - begin


def answered(config: Path) -> float:
    """Seconds from the execution of a process of ours to the agent's answer in the sandbox that it starts."""
    begin = time.time()
    command = [sys.executable, "-m", "kata.testing.answer", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_BOOT_TIMEOUT_S)
    return float(done.stdout) - begin


def pss_mib(pids: list[int]) -> float:
    """Proportional set size of processes: what is shared counts in shares."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


class Bench:
    """One benchmark run on a private containerd."""

    def __init__(self, containerd: PrivateContainerd, runs: int, directory: Path) -> None:
        self.containerd = containerd
        self.runs = runs
        self.directory = directory
        self.figures: list[Figure] = []
        self.runtimes = {"kata": KATA}

    def add_runc(self) -> str:
        """Take runc in if it works here; says why if it does not."""
        try:
            self.run_once(RUNC)
        except KataError as error:
            return f"runc does not run here and is left out: {error.message.partition(';')[0]}"
        self.runtimes["runc"] = RUNC
        return ""

    def record(self, name: str, unit: str, measured: Mapping[str, tuple[float, ...]]) -> None:
        self.figures += [Figure(name, contender, unit, values) for contender, values in measured.items()]

    def run_once(self, runtime: str, *options: str) -> float:
        return timed(lambda: self.containerd.ctr("run", "--rm", "--runtime", runtime, *options, IMAGE, "bench", "true"))

    def start(self) -> None:
        """`ctr run --rm` of `true`, and a boot of the same guest to the same agent."""
        config = load().config
        share = self.directory / "shared"
        share.mkdir(exist_ok=True)
        plan = sandbox_plan.plan_vm(
            "bare", self.directory, {}, config, accelerator=asyncio.run(accel.choose_for(config.hypervisor)).name
        )
        bare = replace(plan, share_helper=None)
        warm, cold = self.directory / "warm.toml", self.directory / "cold.toml"
        warm.touch()
        cold.write_text("[factory]\nenable_template = false\n")
        answered(warm)  # makes the template
        warmed = replace(plan, kernel_params=(*plan.kernel_params, WARM_UP))
        with open_template(config.factory.template_path, key_of(description(warmed))) as saved:
            self.record(
                "restore to the agent's answer",
                "s",
                alternate(self.runs, {"kata": lambda: answered(warm), "bare qemu": lambda: bare_qemu(bare, saved)}),
            )
        self.record(
            "cold boot to the agent's answer",
            "s",
            alternate(self.runs, {"kata": lambda: answered(cold), "bare qemu": lambda: bare_qemu(bare)}),
        )
        self.record(
            "ctr run --rm",
            "s",
            alternate(
                self.runs,
                {
                    "kata, cold boot": lambda: self.run_once(KATA, "--runtime-config-path", str(cold)),
                    **{name: partial(self.run_once, runtime) for name, runtime in self.runtimes.items()},
                },
            ),
        )

    def exec(self) -> None:
        """`ctr task exec` of `true` in a running container."""
        with ExitStack() as stack:
            for name, runtime in self.runtimes.items():
                self.containerd.ctr("run", "-d", "--runtime", runtime, IMAGE, f"exec-{name}", "sleep", "3600")
                stack.callback(self.containerd.ctr, "task", "rm", "-f", f"exec-{name}")

            def one(name: str) -> float:
                return timed(lambda: self.containerd.ctr("task", "exec", "--exec-id", "e", f"exec-{name}", "true"))

            self.record("exec", "s", alternate(self.runs * 2, {name: partial(one, name) for name in self.runtimes}))

    def memory(self, count: int) -> None:
        """Proportional memory per idle sandbox, all its processes included."""
        measured: dict[str, tuple[float, ...]] = {}
        for name, runtime in self.runtimes.items():
            ids = [f"mem-{name}-{number}" for number in range(count)]
            with ExitStack() as stack:
                for container in ids:
                    self.containerd.ctr("run", "-d", "--runtime", runtime, IMAGE, container, "sleep", "3600")
                    stack.callback(self.containerd.ctr, "task", "rm", "-f", container)
                time.sleep(2)  # idle is what is measured
                measured[name] = tuple(pss_mib(self.sandbox_pids(container)) for container in ids)
        self.record(f"memory per idle sandbox ({count})", "MiB", measured)

    def sandbox_pids(self, container: str) -> list[int]:
        """All processes of a sandbox: the shim, and what it or the container runs."""
        pids = [*processes_of(f"{STATE_ROOT}/{container}")]
        for line in self.containerd.ctr("task", "ls").stdout.splitlines():
            fields = line.split()
            if fields[:1] == [container] and int(fields[1]) not in pids:
                pids.append(int(fields[1]))
        pids += [pid for pid, sandbox in self.containerd.shims().items() if sandbox == container]
        return list(dict.fromkeys(pids))


def render(figures: list[Figure], console: Console) -> None:
    table = Table(title="medians, and the spread from the fastest to the slowest run")
    for column in ("what", "who", "median", "min … max", "runs", "÷ runc", "÷ bare qemu"):
        table.add_column(column, justify="left" if column in ("what", "who") else "right")
    for figure in figures:
        peers = {other.contender: other.median for other in figures if other.name == figure.name}
        table.add_row(
            figure.name,
            figure.contender,
            f"{figure.median:.3f} {figure.unit}",
            f"{min(figure.values):.3f} … {max(figure.values):.3f}",
            str(len(figure.values)),
            *(f"{figure.median / peers[peer]:.2f}" if peer in peers else "" for peer in ("runc", "bare qemu")),
        )
    console.print(table)


def machine() -> dict[str, object]:
    """The machine, as far as it matters for the figures."""
    config = load().config
    verdict = asyncio.run(accel.choose_for(config.hypervisor))
    version = subprocess.run([config.hypervisor.path, "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "qemu": version.splitlines()[0],
        "accelerator": verdict.name,
        "reason": verdict.reason,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each contender")
    parser.add_argument("--sandboxes", type=int, default=5, help="idle sandboxes to measure memory with")
    parser.add_argument("--only", action="append", choices=("start", "exec", "memory"), help="measure just this part")
    parser.add_argument("--json", type=Path, default=Path("results/bench.json"), help="where to write the figures")
    options = parser.parse_args()
    parts = options.only or ["start", "exec", "memory"]
    console = Console()
    with TemporaryDirectory(prefix="kata-bench-") as scratch, PrivateContainerd() as containerd:
        archive = busybox_archive(Path(scratch) / "busybox.tar", name=IMAGE)
        containerd.import_image(archive)
        bench = Bench(containerd, options.runs, Path(scratch))
        if complaint := bench.add_runc():
            console.print(complaint)
        for part in parts:
            console.print(f"measuring {part} …")
            if part == "start":
                bench.start()
            elif part == "exec":
                bench.exec()
            else:
                bench.memory(options.sandboxes)
    render(bench.figures, console)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine(),
        "figures": [{**asdict(figure), "median": figure.median} for figure in bench.figures],
    }
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"written to {options.json}")


if __name__ == "__main__":
    main()
