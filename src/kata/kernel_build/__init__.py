"""The guest's kernel, built from Debian's sources: fragments, patches, checks, and the kernels of this host."""
