"""A word of Kata's protocol for which types.proto has no name."""

#: `Interface.type` of a device of the host's that was assigned to the machine: it is found by its place, `devicePath`.
PHYSICAL = "physical"
