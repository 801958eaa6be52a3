"""`make soak`: pods that live, are cut short and removed for an hour, on a host that is short of memory and disk."""
