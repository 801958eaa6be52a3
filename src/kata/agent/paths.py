"""Where the agent keeps things. Names below /run/kata-containers are Kata's, and the host relies on them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paths:
    """Directories, as absolute paths without a trailing slash.

    Attributes:
        base: bundles (`<base>/<container id>`) and everything that the host may name in a request.
        run: short-lived files of the agent: console sockets, FIFOs of pre-spawned containers.
        namespaces: the sandbox's pinned namespaces.
        crun: crun's state.
        cgroup: the parent of the containers' cgroups.
    """

    base: str = "/run/kata-containers"
    run: str = "/run/kata-agent"
    namespaces: str = "/run/sandbox-ns"
    crun: str = "/run/crun"
    cgroup: str = "/sys/fs/cgroup/kata"

    @property
    def shared(self) -> str:
        """Where the host's shared directory is mounted; CopyFile writes here too."""
        return f"{self.base}/shared/containers"

    @property
    def sandbox(self) -> str:
        """Files of the sandbox as a whole: shm, ephemeral volumes, resolv.conf."""
        return f"{self.base}/sandbox"

    @classmethod
    def under(cls, directory: str) -> Paths:
        """All directories below one, for an agent that runs as an ordinary process."""
        return cls(
            base=f"{directory}/kata-containers",
            run=f"{directory}/agent",
            namespaces=f"{directory}/sandbox-ns",
            crun=f"{directory}/crun",
        )
