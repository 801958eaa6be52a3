"""Container images from files: read an archive, unpack it into a directory, look up its user.

For `kata run`, without a container engine. Not here: registries, a content store, snapshots (containerd has them).
Images are untrusted: sizes are bounded, paths are resolved beneath the target's root.
"""
