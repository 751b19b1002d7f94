"""Uniform channel selection: the channels of the smallest BatchNorm scales, the same share of every layer's.

The baseline of Suteu & Guo 2022 that trains without a regulariser.
"""

from hybridprune.pruning.channel_scores.scale import bn_rank
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(bn_rank, relative=True, least=3)
