"""Python's front door: an editor or a comparison in one call."""
