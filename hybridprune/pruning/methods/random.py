"""Random channels: the arm that every score must beat."""

from hybridprune.pruning.channel_scores.magnitude import random
from hybridprune.pruning.method import ChannelMethod

METHOD = ChannelMethod(random, relative=True)
