"""MaskSparsity (Jiang et al. 2022)."""
