"""A constant of Kata's protocol that types.proto does not define."""

#: `Interface.type` of a physical NIC that is assigned to the VM: it is found by its PCI path, `devicePath`.
PHYSICAL = "physical"
