"""Compare methods: edit, score and revert each case with each method; make tables of it."""
