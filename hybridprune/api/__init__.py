# pyright: strict
"""The Python API: pruning, loading and predicting, BatchNorm scales in memory."""
