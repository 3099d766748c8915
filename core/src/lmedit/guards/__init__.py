"""Guards around every hook: for its prints, its errors, its results and its side effects."""
