"""HTTP/1.1 over the Unix socket on which a running sandbox answers commands of its host: server and client.

The socket has Kata's name, and Kata's paths among others (docs/reference/management.md).
Both sides leave the protocol to h11, which is bytes in, events out.
"""
