"""Dynamic pruning: episodes, the environment, rollouts, estimators."""

import gymnasium

gymnasium.register(
    id="hybridprune/GateRouting-v0",
    entry_point="hybridprune.routing.env:GateRoutingEnv",
    vector_entry_point="hybridprune.routing.env:GateRoutingVectorEnv",
)
