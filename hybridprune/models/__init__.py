"""Networks: backbones, gates, the gated step machine, the factored convolution."""
