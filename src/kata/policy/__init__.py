"""Policies: which requests an agent takes, and with which fields. Read and evaluated here, by agent and host alike.

    document    a policy: from TOML, and its answer to a request
    condition   what a field has to be
    field       fields of a request by their paths, as the protocol's descriptors have them

Nothing here does any I/O.
"""
