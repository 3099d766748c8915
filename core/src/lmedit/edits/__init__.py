"""Stored edits: patches, the ledger of a model, model folders, adapters and recipes."""
