"""Which worker? Decisions only: no I/O, no clock but the one passed in."""
