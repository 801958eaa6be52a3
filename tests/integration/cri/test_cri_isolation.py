"""Namespaces, users, capabilities and what else keeps a container apart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kata.protocols import cri_pb2 as pb
from tests.support.cri import Cri, Pod

CAP_NET_RAW, CAP_CHOWN, CAP_SYS_TIME = 13, 0, 25


def effective(container_sh: str) -> int:
    return int(next(line.split()[1] for line in container_sh.splitlines() if line.startswith("CapEff")), 16)


def security(**fields: object) -> pb.LinuxContainerSecurityContext:
    return pb.LinuxContainerSecurityContext(**fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def configured(cri: Cri) -> Iterator[Pod]:
    """A pod with a host name, DNS and sysctls of its own."""
    dns = pb.DNSConfig(servers=["10.9.8.7"], searches=["svc.example"], options=["ndots:3"])
    sysctls = {"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "77"}
    linux = pb.LinuxPodSandboxConfig(sysctls=sysctls)
    with cri.pod("configured", hostname="a-name-of-its-own", dns_config=dns, linux=linux) as pod:
        yield pod


def test_hostname(configured: Pod) -> None:
    assert configured.output("hostname") == "a-name-of-its-own\n"


def test_custom_dns(configured: Pod) -> None:
    said = configured.output("cat", "/etc/resolv.conf").split("\n")
    assert {"nameserver 10.9.8.7", "search svc.example", "options ndots:3"} <= set(said)


def test_sysctls(configured: Pod) -> None:
    files = "/proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start"
    assert configured.output("sh", "-c", f"cat {files}") == "1\n77\n"


def test_pid_namespace_of_each_container(pod: Pod) -> None:
    container = pod.run()
    assert container.sh("cat /proc/1/cmdline | tr '\\0' ' '") == "sleep 1000 "
    container.remove()


def test_shared_pid_namespace(cri: Cri) -> None:
    shared = pb.NamespaceOption(pid=pb.POD)
    linux = pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(namespace_options=shared))
    with cri.pod("shared-pids", linux=linux) as pod:
        first = pod.run("sleep", "4321", security=security(namespace_options=shared))
        second = pod.run("sleep", "1000", security=security(namespace_options=shared))
        assert "sleep 4321" in second.sh("ps -o args")
        assert "sleep 1000" in first.sh("ps -o args")
        first.remove()
        assert second.sh("echo alive") == "alive\n"


def test_a_debugger_sees_the_processes_of_its_target(pod: Pod) -> None:
    """`kubectl debug --target`: of the container that it names, not of the pod's first one."""
    other, target = pod.run("sleep", "4321"), pod.run("sleep", "4322")
    aimed = pb.NamespaceOption(pid=pb.TARGET, target_id=target.id)
    assert pod.output("cat", "/proc/1/cmdline", security=security(namespace_options=aimed)) == "sleep\x004322\x00"
    other.remove()
    target.remove()


def test_shared_memory_of_the_pod(pod: Pod) -> None:
    first, second = pod.run(), pod.run()
    first.sh("echo shared > /dev/shm/word")
    assert second.sh("cat /dev/shm/word") == "shared\n"
    first.remove()
    second.remove()


def test_capabilities(pod: Pod) -> None:
    changed = pb.Capability(add_capabilities=["SYS_TIME"], drop_capabilities=["CHOWN"])
    before = effective(pod.output("cat", "/proc/self/status"))
    after = effective(pod.output("cat", "/proc/self/status", security=security(capabilities=changed)))
    assert before & 1 << CAP_CHOWN
    assert not before & 1 << CAP_SYS_TIME
    assert after == before & ~(1 << CAP_CHOWN) | 1 << CAP_SYS_TIME


def test_privileged(cri: Cri) -> None:
    """Everything inside of the pod's VM: it may mount, and write to /proc/sys."""
    linux = pb.LinuxPodSandboxConfig(security_context=pb.LinuxSandboxSecurityContext(privileged=True))
    with cri.pod("privileged", linux=linux) as pod:
        script = "mount -t tmpfs none /mnt && touch /mnt/file && ls /mnt"
        assert pod.output("sh", "-c", f"mkdir -p /mnt && {script}", security=security(privileged=True)) == "file\n"
        container = pod.run()
        assert container.exec("mount", "-t", "tmpfs", "none", "/tmp").status != 0


def test_user_and_groups(pod: Pod) -> None:
    who = security(
        run_as_user=pb.Int64Value(value=1234), run_as_group=pb.Int64Value(value=555), supplemental_groups=[777, 888]
    )
    assert pod.output("sh", "-c", "id -u; id -g; id -G", security=who) == "1234\n555\n555 777 888\n"


def test_user_by_name(pod: Pod) -> None:
    assert pod.output("id", "-u", security=security(run_as_username="nobody")) == "65534\n"


def test_read_only_root(pod: Pod) -> None:
    container = pod.run(security=security(readonly_rootfs=True))
    assert "Read-only file system" in container.exec("touch", "/file").stderr
    container.remove()


def test_no_new_privileges(pod: Pod) -> None:
    said = pod.output("grep", "NoNewPrivs", "/proc/self/status", security=security(no_new_privs=True))
    assert said.split() == ["NoNewPrivs:", "1"]


def test_seccomp(pod: Pod) -> None:
    default = security(seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault))
    said = pod.output("grep", "^Seccomp:", "/proc/self/status", security=default)
    assert said.split() == ["Seccomp:", "2"]
    said = pod.output("sh", "-c", "unshare -m true 2>&1 || echo refused", security=default)
    assert said.endswith("refused\n")


def test_masked_and_read_only_paths(pod: Pod) -> None:
    paths = security(masked_paths=["/proc/timer_list", "/etc/group"], readonly_paths=["/etc"])
    container = pod.run(security=paths)
    assert container.sh("cat /etc/group") == ""
    assert container.exec("touch", "/etc/file").status != 0
    container.remove()
