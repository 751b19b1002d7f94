"""From a trained network to one that is shipped: BatchNorm folded, forms chosen by the clock, gates made cheap."""

from hybridprune.deploy.choice import Choice
from hybridprune.deploy.deploy import Deployed, deploy
from hybridprune.deploy.harden import Harden
from hybridprune.deploy.network import DeployedNetwork
from hybridprune.deploy.report import DeployReport
from hybridprune.deploy.store import load_deployed, save_deployed
from hybridprune.deploy.validate import Validated, evaluate_module

__all__ = [
    "Choice",
    "DeployReport",
    "Deployed",
    "DeployedNetwork",
    "Harden",
    "Validated",
    "deploy",
    "evaluate_module",
    "load_deployed",
    "save_deployed",
]
