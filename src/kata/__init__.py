"""Kata Containers in Python: containers that run in a lightweight virtual machine of their own."""
