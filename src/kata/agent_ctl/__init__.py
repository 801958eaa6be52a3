"""`kata-agent-ctl`: single calls to an agent, for tests and for looking into a guest.

    words → commands (`script`) → requests (`request`, `automatic`) → calls, one after the other (`session`)

All but the session and what it connects to (`address`, `vm`) are pure functions. RPCs, fields and types come from the
protocol's descriptors, so that no list of them is kept here.
"""
