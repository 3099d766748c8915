"""Scores of edits: pure functions of log-probabilities (nats), and the one scorer behind them."""
