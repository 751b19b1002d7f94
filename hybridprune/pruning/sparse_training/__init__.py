"""Training towards sparsity before a cut: what a method asks for, and what it adds to the gradients."""
