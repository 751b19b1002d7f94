"""What the methods that train towards sparsity add to the gradients."""
