"""The pruning methods by name; each is a small file that says what it scores and how that is allocated."""

from __future__ import annotations

from collections.abc import Mapping

from hybridprune.pruning.method import Method
from hybridprune.pruning.methods import (
    adapruner,
    bn_scale,
    c_obd,
    c_obs,
    eigendamage,
    fisher_tucker,
    greg_1,
    greg_2,
    group_l2,
    kron_obd,
    kron_obs,
    l1,
    lookahead,
    masksparsity,
    nuspm,
    peel,
    random,
    rni,
    slimming,
    taylor,
    ucs,
    uniform,
)

METHODS: Mapping[str, Method] = {
    "fisher-tucker": fisher_tucker.METHOD,
    "eigendamage": eigendamage.METHOD,
    "kron-obd": kron_obd.METHOD,
    "kron-obs": kron_obs.METHOD,
    "c-obd": c_obd.METHOD,
    "c-obs": c_obs.METHOD,
    "taylor": taylor.METHOD,
    "bn-scale": bn_scale.METHOD,
    "l1": l1.METHOD,
    "random": random.METHOD,
    "uniform": uniform.METHOD,
    "slimming": slimming.METHOD,
    "lookahead": lookahead.METHOD,
    "group-l2": group_l2.METHOD,
    "greg-1": greg_1.METHOD,
    "greg-2": greg_2.METHOD,
    "masksparsity": masksparsity.METHOD,
    "peel": peel.METHOD,
    "adapruner": adapruner.METHOD,
    "nuspm": nuspm.METHOD,
    "ucs": ucs.METHOD,
    "rni": rni.METHOD,
}
