"""Messages and services that cross a process boundary: .proto sources and the modules generated from them."""
