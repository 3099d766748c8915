"""The version of lmedit; all distributions of the workspace have the same."""

__version__ = "0.1.0"
