"""Training and evaluating gated networks."""
