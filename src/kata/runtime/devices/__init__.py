"""Host devices made the guest's: opened, plugged in, counted, taken back."""
