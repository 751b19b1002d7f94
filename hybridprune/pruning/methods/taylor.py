"""First-order Taylor importance of channels (Molchanov et al. 2019)."""

from hybridprune.pruning.channel_scores.taylor import taylor
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(taylor, needs="taylor")
