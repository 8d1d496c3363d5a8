"""The command `secateurs`."""
