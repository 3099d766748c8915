"""Compare methods: edit, score, revert, for every case and method; tables of the results."""
