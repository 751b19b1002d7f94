"""The pruning methods by name, and where each stands."""

from __future__ import annotations

from hybridprune.config.registry import Registry

_HOME = "hybridprune.pruning.methods"

METHODS = Registry(
    group="hybridprune.methods",
    built_in={
        "fisher-tucker": f"{_HOME}.fisher_tucker:METHOD",
        "eigendamage": f"{_HOME}.eigendamage:METHOD",
        "kron-obd": f"{_HOME}.by_score:KRON_OBD",
        "kron-obs": f"{_HOME}.by_score:KRON_OBS",
        "c-obd": f"{_HOME}.by_score:C_OBD",
        "c-obs": f"{_HOME}.by_score:C_OBS",
        "taylor": f"{_HOME}.by_score:TAYLOR",
        "saliency": f"{_HOME}.by_score:SALIENCY",
        "global-variance": f"{_HOME}.by_score:GLOBAL_VARIANCE",
        "trace-ratio": f"{_HOME}.by_score:TRACE_RATIO",
        "bn-scale": f"{_HOME}.by_score:BN_SCALE",
        "l1": f"{_HOME}.by_score:L1",
        "random": f"{_HOME}.by_score:RANDOM",
        "uniform": f"{_HOME}.by_score:UNIFORM",
        "slimming": f"{_HOME}.slimming:METHOD",
        "lookahead": f"{_HOME}.by_score:LOOKAHEAD",
        "group-l2": f"{_HOME}.by_score:GROUP_L2",
        "greg-1": f"{_HOME}.greg_1:METHOD",
        "greg-2": f"{_HOME}.greg_2:METHOD",
        "masksparsity": f"{_HOME}.masksparsity.method:METHOD",
        "peel": f"{_HOME}.peel:METHOD",
        "adapruner": f"{_HOME}.adapruner:METHOD",
        "nuspm": f"{_HOME}.nuspm.method:METHOD",
        "ucs": f"{_HOME}.by_score:UCS",
        "rni": f"{_HOME}.rni:METHOD",
        "dsp": f"{_HOME}.dsp.method:METHOD",
        "bcnet": f"{_HOME}.bcnet.method:METHOD",
    },
)
"""The one list of them; pruning finds them through it, which these options cannot import."""

METHOD_NAMES = tuple(METHODS.built_in)
"""Our own, in the order in which help and tables show them."""
