"""Edits as things: patches, stacks of them, model folders, adapters and recipes."""
