"""What can be on a ledger, and who releases each kind.

A room that acquires something outside of its process has its kind here, with the function that releases one by the
value on the ledger. Functions are named, not imported, like a package's entry points: rooms are above the ledger, most
sandboxes that died hold nothing of most kinds, and the shim's `delete` has no time to load them all.

A releaser is idempotent, because what is on the ledger may never have been acquired, and raises OSError.
"""

from __future__ import annotations

#: A process, found by the variable MARKER in its environment: the value is the state directory that the variable names.
PROCESS = "process"
#: A file or socket outside the state directory: the value is its absolute path.
FILE = "file"
#: A directory outside the state directory, with all that is in it: the value is its absolute path.
TREE = "tree"
#: A filter on an interface of a pod's network namespace: the value is "INODE INDEX PATH".
NETWORK = "network"
#: An interface that was made in a pod's network namespace: the value is "INODE INDEX PATH".
INTERFACE = "interface"
#: A host cgroup's directory: the value is its absolute path.
CGROUP = "cgroup"
#: A PCI device that was taken from its driver: the value is "ADDRESS" or "ADDRESS DRIVER_OVERRIDE".
PCI = "pci"
#: Hooks of a container that have to be run when it is gone: the value is "CONTAINER STATE-DIRECTORY BUNDLE".
HOOKS = "hooks"
#: A network that CNI plugins have made: the value is the path of the record of it.
CNI = "cni"

#: Kind → "module:function".
RELEASERS = {
    PROCESS: "kata.runtime.ledger.processes:kill_processes",
    FILE: "kata.runtime.ledger.files:unlink",
    TREE: "kata.runtime.ledger.files:remove_tree",
    NETWORK: "kata.runtime.network.release:release_filter",
    INTERFACE: "kata.runtime.network.release:release_interface",
    CGROUP: "kata.runtime.resources.release:remove_cgroup",
    PCI: "kata.runtime.devices.binding:release_device",
    HOOKS: "kata.runtime.sandbox.hooks:release_hooks",
    CNI: "kata.runtime.network.cni:release_network",
}
