# pyright: strict
"""Training and pruning by the scales of BatchNorms, in memory: ``train``, then ``prune_finetune``."""

from hybridprune.api.bn_scale import prune_finetune, train

__all__ = ["prune_finetune", "train"]
