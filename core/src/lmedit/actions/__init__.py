"""The work of each command, as functions that take and return values."""
