from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kata.metrics import procfs
from kata.metrics.procfs import Process
from tests.support.waiting import eventually


def test_a_process_with_a_name_that_looks_like_fields() -> None:
    program = ["bash", "-c", "printf ') S 1 2 (x) 3' > /proc/self/comm; read -r _"]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as child:
        eventually(Path(f"/proc/{child.pid}/comm").read_text, "its name", lambda name: ")" in name)
        process = Process(child.pid)
        assert process.threads == 1
        assert process.descriptors() >= 3
        assert 0 < process.proportional_bytes() <= process.virtual_bytes
        assert process.status(unit=1024)["vmrss"] == pytest.approx(process.resident_bytes, rel=0.5)
        assert process.io()["rchar"] > 0
        child.communicate(b"\n")
    with pytest.raises(OSError):
        Process(child.pid)


def test_memory_by_katas_names_in_bytes() -> None:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert procfs.memory()["mem_total"] == pages
    # The names of Kata's that have a digit, or end in capitals.
    names = ["DirectMap4k", "DirectMap2M", "HugePages_Surp", "SUnreclaim", "NFS_Unstable", "ShmemPmdMapped", "Slab"]
    assert [procfs._meminfo_name(name) for name in names] == [
        "direct_map_4k", "direct_map_2M", "hugepages_surp", "s_unreclaim", "nfs_unstable", "shmem_pmd_mapped", "slab",
    ]  # fmt: skip


def test_entries_are_bounded() -> None:
    text = "a\nb\n" + "".join(f" veth{n}: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n" for n in range(1000))
    found = procfs._network(text)
    assert len(found) == 64 * 16
    assert (found[0][0], found[0][1]) == ({"interface": "veth0", "item": "recv_bytes"}, 1)
    assert (found[15][0], found[15][1]) == ({"interface": "veth0", "item": "sent_compressed"}, 16)


def test_cpus_and_boot_time() -> None:
    cpus = {labels["cpu"] for labels, _ in procfs.cpu_time()}
    assert cpus == {"total", *(str(number) for number in range(os.cpu_count() or 1))}
    assert 1.5e9 < procfs.boot_time() < 1e10
