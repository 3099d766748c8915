"""A finished run as text: tables, and one self-contained page; pure functions of data."""
