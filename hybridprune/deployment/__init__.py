"""Deployment of a trained network: BatchNorm folded, forms chosen by the clock, gates made cheap."""

from hybridprune.deployment.cascade import DeployedCascade
from hybridprune.deployment.choice import Choice
from hybridprune.deployment.deploy import Deployed, deploy
from hybridprune.deployment.harden import Harden
from hybridprune.deployment.network import DeployedNetwork
from hybridprune.deployment.report import DeployReport
from hybridprune.deployment.store import load_deployed, save_deployed
from hybridprune.deployment.validate import Validated, evaluate_module

__all__ = [
    "Choice",
    "DeployReport",
    "Deployed",
    "DeployedCascade",
    "DeployedNetwork",
    "Harden",
    "Validated",
    "deploy",
    "evaluate_module",
    "load_deployed",
    "save_deployed",
]
