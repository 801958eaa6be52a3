"""kata-trace-forwarder: takes spans of sandboxes and their guests, and exports them to a collector.

Frames come in over Unix sockets and vsock (`receiver`), wait in a bounded buffer (`buffer`), and leave as OTLP over
gRPC or HTTP (`otlp`, `exporting`), or as lines of JSON on standard output (`dump`).
"""
