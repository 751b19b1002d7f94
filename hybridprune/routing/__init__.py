"""Dynamic pruning: environment, rollouts, policy gradient."""
