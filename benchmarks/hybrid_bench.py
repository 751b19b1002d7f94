"""The bench of `benchmarks.hybrid_arms`: its arms by name, and how a network is brought through each of them."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.results_log import Line, pack
from benchmarks.static_arms import ARMS as STATIC_ARMS
from benchmarks.static_arms import Bench as StaticBench
from hybridprune.config import OptimOptions, RoutingOptions
from hybridprune.data import Batch, EvalBatches
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.engine.evaluate import Evaluation, evaluate
from hybridprune.engine.fit import Fit
from hybridprune.engine.objective import Objective, Pass
from hybridprune.engine.progress import Progress, Validation
from hybridprune.engine.threshold import threshold_for
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.edits import edits_between
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.precision import Precision
from hybridprune.routing.gumbel import GumbelRouting
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.policy_gradient import PolicyGradient
from hybridprune.routing.price import TOLERANCE, Price
from hybridprune.routing.subset import best_subset
from hybridprune.stages.gates_from_subset import gates_from_subset, search_images
from hybridprune.stages.routed_score import routed_score
from hybridprune.store.run_folder import RunFolder
from hybridprune.store.seeds import generator
from hybridprune.store.weights import load_weights

SIZE = 32
SCHEDULE = {"0": 0.1, "0.1": 1.0, "1": 0.0}
STATIC = OptimOptions(lr=0.02, scheduler_id="up-down", scheduler_params=SCHEDULE)
DYNAMIC = OptimOptions(lr=0.003, scheduler_id="up-down", scheduler_params=SCHEDULE)

POLICY = {"reward_scale": 0.3, "rl_weight": 1.0, "rl_warmup": 0.0, "exploration": 0.1, "price_step": 0.05}
# Like the static arms: BatchNorm in training mode, their learning rate. The gates learn as fast as in the other arms.
TRAINED = {"batchnorm": "trained", "gate_lr_factor": 10 * DYNAMIC.lr / STATIC.lr}
DYNAMIC_ARMS: Mapping[str, Mapping[str, Any]] = {
    "counterfactual": {"baseline": "counterfactual"},
    "self-critical": {"baseline": "self_critical"},
    "counterfactual, sampled": {"baseline": "counterfactual", "flip_from": "sampled"},
    "gumbel": {"estimator": "gumbel"},
    "counterfactual, rate bounds": {"baseline": "counterfactual", "rate_bound": 0.3},
    "gumbel, rate bounds": {"estimator": "gumbel", "rate_bound": 0.3},
    "moving average": {"baseline": "moving_average"},
    "no baseline": {"baseline": "none"},
    "gumbel, BatchNorm trained": {"estimator": "gumbel", **TRAINED},
    "gumbel from the subset": {"estimator": "gumbel", "gate_start": "subset", **TRAINED},
    "counterfactual from the subset": {"baseline": "counterfactual", "gate_start": "subset", **TRAINED},
    "gumbel, rate bounds, BatchNorm trained": {"estimator": "gumbel", "rate_bound": 0.3, **TRAINED},
    "counterfactual, BatchNorm trained": {"baseline": "counterfactual", **TRAINED},
    "self-critical, BatchNorm trained": {"baseline": "self_critical", **TRAINED},
}
STATIC_NAMES = ("static at F1", "static at F2", "static in two cuts")
CONTROLS = ("fixed subset", "random gates")
RANDOM_LIKE = "random gates as "
"""Before a dynamic arm's name: random gates at the rates of this one."""


def routing_options(name: str, budget: float, epochs: int) -> RoutingOptions:
    """The options of a dynamic arm, for a ``budget`` in shares of the dense FLOPs."""
    return RoutingOptions(**{**POLICY, "epochs": epochs, "target_flops": budget, **DYNAMIC_ARMS[name]})


@dataclass(frozen=True)
class Forced:
    """Cross-entropy of routes that do not depend on the image; without routes, of the backbone."""

    routes: Callable[[int], Tensor] | None = None

    def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        if self.routes is None:
            assert isinstance(forward, GatedNetwork)
            logits = forward.backbone(batch.images)
        else:
            logits = forward(batch.images, self.routes(len(batch.labels))).logits
        loss = F.cross_entropy(logits.float(), batch.labels)
        return loss, {"cross_entropy": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


@dataclass(frozen=True)
class Bench:
    """The images, the folder of trainings, and what all arms of one line have in common."""

    static: StaticBench
    work: Path
    f1: float
    f2: float
    epochs: tuple[int, int]
    dense_macs: int

    @property
    def seed(self) -> int:
        return self.static.seed

    def second_phase(self, name: str) -> RunFolder:
        """The folder of a second phase."""
        return RunFolder(self.work / f"{name}-{self.epochs[0]}+{self.epochs[1]}epochs-seed{self.seed}")

    def run_of(self, arm: str) -> RunFolder:
        """The folder of the second phase of an arm of this pair of budgets."""
        return self.second_phase(f"{self.f1:g}-{self.f2:g}-{arm.replace(',', '').replace(' ', '-')}")

    def first_phase(self, share: float) -> GatedNetwork:
        """The network cut to ``share`` and trained for the first phase; kept in the work folder."""
        run = RunFolder(self.work / f"cut{share:g}-{self.epochs[0]}epochs-seed{self.seed}")
        spec_file = run.path / "cut.json"
        if not spec_file.is_file():
            net, _ = self.static.cut(STATIC_ARMS["fisher-tucker"], share)
            dense = self.static.network
            network = dataclasses.replace(dense, edits=edits_between(dense.build(), net))
            self.fit(run, net, Forced(), self.epochs[0], STATIC, self.always_on_score, nn.Module.train)
            run.write_json("cut.json", network.to_json())
        net = NetworkSpec.from_json(json.loads(spec_file.read_text())).build()
        load_weights(net, run.model_file)
        return net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def fit(
        self,
        run: RunFolder,
        net: GatedNetwork,
        objective: Objective,
        epochs: int,
        optim: OptimOptions,
        score: Callable[[GatedNetwork], Validation],
        train_mode: Callable[[GatedNetwork], object],
        gate_lr_factor: float = 1.0,
    ) -> None:
        """Train ``net`` in place and leave the weights of its last epoch in it: no arm selects an epoch."""
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / "train_state.pt").unlink(missing_ok=True)
        Fit(
            run=run,
            net=net,
            objective=objective,
            batches=self.static.images.training(f"hybrid arms {epochs}"),
            validate=score,
            optim=dataclasses.replace(optim, precision=self.static.precision),
            epochs=epochs,
            device=self.static.images.device,
            log_interval=20,
            gate_lr_factor=gate_lr_factor,
            gate_grad_norm=1.0,
            train_mode=train_mode,
        )(Progress(), None)
        load_weights(net, run.path / "last.safetensors")
        run.save_weights("model.safetensors", net)

    def always_on_score(self, net: GatedNetwork) -> Validation:
        found = evaluate(net, self.static.images.validation(), "always_on")
        return Validation(found.accuracy, {"accuracy": found.accuracy, "loss": found.loss})

    def line(self, found: Evaluation, cost: NetworkCost, macs: float) -> Line:
        correct = (found.predictions == found.labels).numpy()
        return {
            "share": macs / self.dense_macs,
            "accuracy": float(correct.mean()),
            "images": len(correct),
            "correct": pack(correct),
            "params": cost.backbone_params,
            "rates": [round(rate, 4) for rate in found.block_rates],
        }

    # The arms.

    def run_static(self, name: str) -> Line:
        share = self.f2 if name == "static at F2" else self.f1
        net, run = self.first_phase(share), self.second_phase(f"static{share:g}")
        if name == "static in two cuts":
            net, _ = self.static.cut(STATIC_ARMS["fisher-tucker"], self.f2, net)
            run = self.run_of(name)
        self.fit(run, net, Forced(), self.epochs[1], STATIC, self.always_on_score, nn.Module.train)
        cost = count(net, SIZE)
        validation = self.always_on_score(net).score
        found = evaluate(net, self.static.images.test(), "always_on")
        return {**self.line(found, cost, cost.backbone_macs), "validation": validation}

    def run_dynamic(self, name: str) -> Line:
        net = self.first_phase(self.f1)
        cost = count(net, SIZE)
        budget = self.f2 * self.dense_macs
        options = routing_options(name, self.f2, self.epochs[1])
        device, images = self.static.images.device, self.static.images
        first_price = options.reward_scale
        if options.gate_start == "subset":
            subset, first_price = gates_from_subset(net, cost, budget, images, first_price)
            print("subset", subset.route.int().tolist(), [round(logit, 1) for logit in subset.logits().tolist()])
        price = Price(first_price, budget / cost.backbone_macs, options.price_step, device)
        precision = Precision.of(self.static.precision, device)
        terms = RoutingTerms.of(cost, options, price, device, precision=precision)
        objective = (
            GumbelRouting(terms, images=len(images.dataset.train), seed=self.seed)
            if options.estimator == "gumbel"
            else PolicyGradient(net, terms, images=len(images.dataset.train), seed=self.seed)
        )
        score = partial(routed_score, cost=cost, reward_scale=0.0, budget=budget)
        run = self.run_of(name)

        def validated(candidate: GatedNetwork) -> Validation:
            found = score(candidate, images.validation())
            price.validated(found.metrics["flops_share"])
            return found

        optim, mode = (STATIC, nn.Module.train) if options.batchnorm == "trained" else (DYNAMIC, nn.Module.eval)
        self.fit(run, net, objective, self.epochs[1], optim, validated, mode, options.gate_lr_factor)
        recalibrated = copy.deepcopy(net)
        before = self.meet(net, cost, budget)
        recalibrate(recalibrated, images.sample(10_000, 128, "recalibration"))
        after = self.meet(recalibrated, cost, budget)
        if after > before:
            net = recalibrated
        found = evaluate(net, images.test(), "executed")
        order = torch.randperm(len(found.labels), generator=generator(self.seed, "replay"))
        replayed = evaluate(net, images.test(), "executed", found.decisions[order])
        always_on = evaluate(net, images.test(), "always_on")
        line = self.line(found, cost, cost.expected_macs(found.block_rates))
        return {
            **line,
            "validation": max(before, after),
            "recalibrated": after > before,
            "price": float(price.value),
            "decisions": pack(found.decisions.flatten().numpy()),
            "distinct_routes": len(torch.unique(found.decisions, dim=0)),
            "replayed": replayed.accuracy,
            "replayed_correct": pack((replayed.predictions == replayed.labels).numpy()),
            "always_on": always_on.accuracy,
            "always_on_correct": pack((always_on.predictions == always_on.labels).numpy()),
        }

    def meet(self, net: GatedNetwork, cost: NetworkCost, budget: float) -> float:
        """Shift the gates to the budget; returns the validation accuracy there."""
        point = threshold_for(net, self.static.images.validation(), cost, budget, TOLERANCE / 2)
        net.gate.shift(-point.threshold)
        return point.evaluation.accuracy

    def run_fixed(self) -> Line:
        net = self.first_phase(self.f1)
        cost = count(net, SIZE)
        route = best_subset(net, cost, search_images(self.static.images), self.f2 * self.dense_macs).route
        run = self.run_of("fixed subset")
        routes: Callable[[int], Tensor] = lambda batch: route.expand(batch, -1)  # noqa: E731
        return self.run_forced(run, net, cost, routes, gates=False)

    def run_random(self, name: str, rates: Tensor) -> Line:
        net = self.first_phase(self.f1)
        draw = generator(self.seed, "random gates")
        routes: Callable[[int], Tensor] = lambda batch: (  # noqa: E731
            torch.rand(batch, len(rates), generator=draw) < rates
        ).float()
        run = self.run_of(name)
        return self.run_forced(run, net, count(net, SIZE), routes, gates=True)

    def run_forced(
        self, run: RunFolder, net: GatedNetwork, cost: NetworkCost, routes: Callable[[int], Tensor], gates: bool
    ) -> Line:
        def routed(batches: EvalBatches) -> Evaluation:
            return evaluate(net, batches, "executed", routes(batches.num_images))

        def score(candidate: GatedNetwork) -> Validation:
            found = routed(self.static.images.validation())
            return Validation(found.accuracy, {"accuracy": found.accuracy, "loss": found.loss})

        self.fit(run, net, Forced(routes), self.epochs[1], STATIC, score, nn.Module.train)
        validation = score(net).score
        found = routed(self.static.images.test())
        macs = cost.expected_macs(found.block_rates) - (0 if gates else sum(cost.gate_macs))
        return {**self.line(found, cost, macs), "validation": validation}
