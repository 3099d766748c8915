"""What each command does, as functions that take and return values."""
