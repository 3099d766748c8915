"""The Python interface: an editor or a comparison in one call."""
