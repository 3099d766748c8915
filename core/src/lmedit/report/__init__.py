"""A finished run as text: tables, and one self-contained page; from data to text, nothing else."""
