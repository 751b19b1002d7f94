"""From a trained network to one that is shipped: BatchNorm folded, forms chosen by the clock, gates made cheap."""

from hybridprune.deploy.deploy import Deployed, deploy
from hybridprune.deploy.network import DeployedNetwork
from hybridprune.deploy.report import Choice, DeployReport

__all__ = ["Choice", "DeployReport", "Deployed", "DeployedNetwork", "deploy"]
