"""Virtual machines: a plan says what one is (pure data), a virtual machine monitor makes it so."""
