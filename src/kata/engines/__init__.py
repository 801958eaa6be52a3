"""Container engines of this host are told of the runtime, and it is taken back: `kata setup` and `kata unset`."""
