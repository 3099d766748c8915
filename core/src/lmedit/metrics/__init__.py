"""Scores of edits: pure functions of log-probabilities (nats), and one scorer for all of them."""
