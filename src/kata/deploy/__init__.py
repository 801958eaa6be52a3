"""`kata-deploy`: the runtime put onto a Kubernetes node, from a container on it, and taken off again.

The container has the node's root file system at /host and does what a person would do there: it unpacks the tree of the
archive, has `kata setup containerd` run in the node's root, and then labels the node.
"""
