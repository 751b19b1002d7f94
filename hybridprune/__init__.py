"""hybridprune: static and dynamic pruning of convolutional networks.

>>> model = hybridprune.load("results/default/...-rl-seed0")
>>> hybridprune.predict(model, ["cat.png"])
"""

from hybridprune.api.bn_scale import prune_finetune, train
from hybridprune.api.inference import Model, Prediction, load, predict
from hybridprune.api.prune import prune
from hybridprune.api.pruned import Pruned, PrunedSpec, save
from hybridprune.deployment import Deployed, deploy
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.measure.effective import count_weights, effective_sparsity
from hybridprune.version import __version__

__all__ = [
    "Deployed",
    "Model",
    "NetworkCost",
    "Prediction",
    "Pruned",
    "PrunedSpec",
    "__version__",
    "count",
    "count_weights",
    "deploy",
    "effective_sparsity",
    "load",
    "predict",
    "prune",
    "prune_finetune",
    "save",
    "train",
]
