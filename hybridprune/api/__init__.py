# pyright: strict
"""What Python users call: pruning, loading and predicting, BatchNorm scales in memory."""
