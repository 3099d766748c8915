"""The version of lmedit; all distributions of the workspace share it."""

__version__ = "0.1.0"
