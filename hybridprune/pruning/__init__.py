"""Static pruning: decomposition, plan, surgery."""
