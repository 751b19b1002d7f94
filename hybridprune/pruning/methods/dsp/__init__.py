"""Dynamic structure pruning: groups of filters that lose inputs of their own (Park et al. 2023)."""
