"""The options of the three stages: one small frozen dataclass per concern, composed by the stages.

Each field is at once a key of ``config.json``, a command-line flag and an attribute. ``option`` attaches what is needed
to check and to resolve it: the help text, the bounds, the choices and, where the published names differ, the key or
flag names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hybridprune.config.concern import Checked, refuse
from hybridprune.config.methods import METHODS
from hybridprune.config.networks import NETWORKS
from hybridprune.config.recipes import RECIPES
from hybridprune.config.registry import Extension, Registry

T = TypeVar("T")

# No network of anybody's is larger; a mistyped number, or a stranger's, shall not take the machine's memory.
DEEPEST, WIDEST, LARGEST_INPUT = 4096, 16384, 4096

# Places in docs/ that say what options were worth where they were measured.
STUDY = "static.md#the-study-what-each-part-of-the-default-is-worth"
STAGE_2, STAGE_3 = "options.md#stage-2", "options.md#stage-3"

# Kind -> the points that it has if none are given.
_SCHEDULES = {
    "exponential": {"0": 1.0, "1": 0.01},
    "stair": {"0.5": 0.1, "0.75": 0.01},
    "up-down": {"0": 0.2, "0.1": 1.0, "1": 0.0},
    "cosine": {"0": 0.01, "0.05": 1.0, "1": 0.0},
}


def option(
    default: T,
    help: str,
    *,
    flags: tuple[str, ...] = (),
    key: str | None = None,
    choices: Collection[Any] | None = None,
    aliases: Mapping[Any, Any] | None = None,
    bare: str | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    identity: bool = True,
    follows: tuple[str, Callable[[Any], Any]] | None = None,
    names: Registry | None = None,
    several: bool = False,
    source: str | None = None,
    measured: str | None = None,
) -> T:
    """Declare one option of a stage.

    ``key`` is its name in config.json and ``flags`` are its names on the command line (default: the field's name).
    Values lie in ``[low, high]`` and strictly above ``above``; ``aliases`` maps other spellings to a choice.
    ``bare`` is what the flag means without a value (None: it needs one).
    ``identity=False`` marks what may change between a run and its resumption (where things lie, how they are shown).
    ``follows`` names an earlier option of the same concern, and gives for its value the default that goes with it.
    ``names`` is where its names are found; one that says what is imported is taken from a flag, not from a file.
    ``several``: a command takes several values, and has a run for each of them (`Several`).
    ``source`` is the publication that it comes from, ``measured`` the place in docs/ that says what it is worth here.

    Returns a dataclass field. A type checker is told that it is the ``default``, so a field keeps its type.
    """
    metadata = {
        "help": help,
        "flags": flags,
        "key": key,
        "choices": choices,
        "aliases": aliases or {},
        "bare": bare,
        "low": low,
        "high": high,
        "above": above,
        "identity": identity,
        "follows": follows,
        "names": names,
        "several": several,
        "source": source,
        "measured": measured,
    }
    declared: Any = (
        field(default_factory=lambda: dict(default), metadata=metadata)
        if isinstance(default, dict)
        else field(default=default, metadata=metadata)
    )
    return declared


@dataclass(frozen=True)
class RunOptions(Checked):
    """Place, seed and device of a run."""

    result_dir: str = option("results", "folder that holds the run folders", identity=False)
    exp_name: str = option("default", "name of the experiment: a subfolder of result_dir")
    seed: int = option(0, "seed of everything that is random", low=0)
    device: str = option("auto", "torch device, e.g. cpu or cuda:0; auto takes a GPU if there is one", identity=False)
    log_interval: int = option(50, "steps between two updates of the progress bar", low=1, identity=False)
    save_every: float = option(
        10.0,
        "minutes after which a long epoch saves its state, for --resume (0: only between epochs)",
        low=0,
        identity=False,
    )


@dataclass(frozen=True)
class ParentOptions(Checked):
    """The run that a stage starts from."""

    checkpoint_file: str | None = option(
        None,
        "run folder (or its model.safetensors) to start from; by default the finished run under result_dir with the "
        "same data set, network, depth and width: the only one of this seed, else the newest",
        identity=False,
    )


@dataclass(frozen=True)
class DataOptions(Checked):
    """The images, and how they reach the network."""

    dataset: str = option(
        "tree",
        "tree (image folders under data_dir, decoded once into memory), imagefolder (the same or ImageNet's, streamed: "
        "random resized crops), cifar10, cifar100, svhn, svhn-extra (torchvision's files; extra: 531,131 more training "
        "images), cinic10, tiny-imagenet (the folders of their archives) or digits (embedded)",
    )
    data_dir: str | None = option(None, "folder of the data set", identity=False)
    img_type: str = option("png", "file type in the image tree: png, jpg, webp, ... or any")
    resize: int = option(
        32,
        "height and width of the network's input in pixels; tiny-imagenet has 64 where nobody says",
        low=8,
        high=LARGEST_INPUT,
        follows=("dataset", lambda name: 64 if name == "tiny-imagenet" else 32),
    )
    download: bool = option(False, "let torchvision download the set it reads into data_dir", identity=False)
    cache_dir: str | None = option(None, "folder for decoded images (default: the user's cache)", identity=False)
    num_workers: int = option(
        4,
        "workers that decode images: those of a tree on its first read, those of imagefolder all the time, in each "
        "process",
        low=0,
        identity=False,
    )
    batch_size: int = option(128, "images per step, of all processes together", flags=("bs", "batch_size"), low=2)
    augment: bool = option(True, "random crop and, where classes allow it, horizontal flip")
    max_train_samples: int | None = option(None, "train on this many images only, spread over the classes", low=2)
    validation_from: str = option(
        "train",
        "where validation images come from: a tenth of the training images, or (test) a fifth of the test images, for "
        "weights that have seen all training images; figures are then of the other test images",
        choices=("train", "test"),
        measured="trained_networks.md",
    )
    classes: tuple[str, ...] = option(
        (),
        "a subtask: images of these classes alone (names, or ids) are measured, trained on and tested with; the "
        "network keeps all of its outputs",
        source="Hu et al. 2021",
    )


@dataclass(frozen=True)
class NetworkOptions(Checked):
    """The backbone and its gates."""

    network: str = option(
        "resnet",
        f"{', '.join(NETWORKS.built_in)}, torchvision:NAME for any of torchvision's classifiers, or module:factory for "
        "one of your own; resnet18-gated and its like are torchvision's ResNets with gates; vgg and torchvision's own "
        "have none",
        names=NETWORKS,
    )
    depth: int | None = option(
        None,
        "layers: 6n + 2, 9n + 2 with bottleneck, 11, 16 or 19 for vgg; one of your own is built by its own default",
        low=1,
        high=DEEPEST,
        follows=("network", lambda name: 32 if NETWORKS.ours(name) else None),
    )
    width: int | None = option(
        None,
        "channels of the first stage; 64 is the published wide net, 16 the classic one; as depth in one of your own",
        low=1,
        high=WIDEST,
        source="Zagoruyko & Komodakis 2016",
        follows=("network", lambda name: 64 if NETWORKS.ours(name) else None),
    )
    bottleneck: bool = option(
        False, "preresnet, pyramidnet: 1x1-3x3-1x1 blocks in place of two 3x3", source="He et al. 2016"
    )
    pyramid_alpha: int = option(
        48, "pyramidnet: channels that all blocks together add to width", low=0, high=WIDEST, source="Han et al. 2017"
    )
    shakedrop: float = option(
        0.0,
        "pyramidnet: drop probability of the last block, 0.5 in the paper",
        low=0,
        high=1,
        source="Yamada et al. 2018",
    )
    gate: str = option(
        "rnn",
        "what decides: rnn (one LSTM cell shared by all gates), ff1 or ff2 (SkipNet's feed-forward gates I and II), or "
        "none (all blocks run: a member of a cascade needs no gates within, and trains faster without)",
        choices=("rnn", "ff1", "ff2", "none"),
        source="Wang et al. 2018",
    )


@dataclass(frozen=True)
class OptimOptions(Checked):
    """SGD and its schedule."""

    lr: float = option(0.1, "learning rate", above=0)
    momentum: float = option(0.9, "Nesterov momentum", low=0, high=1, source="Sutskever et al. 2013")
    weight_decay: float = option(5e-4, "L2 penalty on all parameters", low=0, source="Krogh & Hertz 1991")
    scheduler_id: str = option(
        "stair",
        "how the factors of scheduler_params are joined: 0 exponential, 1 stair, 2 up-down (piecewise linear), 3 "
        "cosine (linear up, half a cosine down)",
        choices=tuple(_SCHEDULES),
        aliases={alias: name for number, name in enumerate(_SCHEDULES) for alias in (number, str(number))},
        source="Loshchilov & Hutter 2017, cosine",
    )
    scheduler_params: dict[str, float] = option(
        _SCHEDULES["stair"],
        "share of the epochs -> factor of lr, as JSON; without it those of the kind: "
        + ", ".join(f"{kind} {json.dumps(points)}" for kind, points in _SCHEDULES.items()),
        low=0,
        follows=("scheduler_id", lambda kind: dict(_SCHEDULES[kind])),
    )
    precision: str = option(
        "fp32", "autocast precision of training", choices=("fp32", "bf16", "fp16"), source="Micikevicius et al. 2018"
    )
    tf32: bool = option(
        False,
        "training on GPUs: round what goes into fp32 products to TF32 (10 bits), as torch itself does in convolutions; "
        "faster, and figures are in true fp32 all the same",
        identity=False,
    )
    channels_last: bool = option(True, "memory format of images and convolutions")
    sync_batchnorm: bool = option(
        False,
        "several processes on GPUs: BatchNorm takes its statistics from the whole batch, not from each process's share",
        identity=False,
    )


@dataclass(frozen=True)
class LossOptions(Checked):
    """The loss of the supervised stages (1 and 2)."""

    label_smoothing: float = option(
        0.0,
        "share of each label that is spread over all classes in the cross-entropy of training",
        low=0,
        high=0.999,
        source="Szegedy et al. 2016",
    )


@dataclass(frozen=True)
class AveragingOptions(Checked):
    """Averaged weights, in the supervised stages (1 and 2)."""

    ema_decay: float = option(
        0.0,
        "share of itself that a moving average of the weights keeps in a step, e.g. 0.995; both are validated after "
        "each epoch, and the better ones are selected (0: no average)",
        low=0,
        high=0.99999,
        source="Polyak & Juditsky 1992",
    )


@dataclass(frozen=True)
class CompileOptions(Checked):
    """Stages whose step is one forward pass."""

    compile: str = option(
        "off",
        "torch.compile the network for training: on, off, or auto (once steps are timed, if that is expected to take "
        "less time than it saves; rounding, and so the last bits of a result, depend on when)",
        choices=("off", "on", "auto"),
        bare="on",
        identity=False,
        measured="results.md#when-compiling-pays",
    )


@dataclass(frozen=True)
class GatingOptions(Checked):
    """Decisions of gates that learn by gradient descent (stages 1 and 2)."""

    gating: str = option(
        "hard",
        "hard: decisions of 0 or 1 with a straight-through gradient; soft: blocks are blended by their probability "
        "in training (inference decides hard)",
        choices=("hard", "soft"),
        source="Bengio et al. 2013",
    )
    gate_noise: float = option(
        0.0,
        "scale of logistic noise on the gates' logits in training (1: decisions are samples)",
        low=0,
        source="Maddison et al. 2017",
    )


@dataclass(frozen=True)
class SupervisedOptions(Checked):
    """Stage 1."""

    epochs: int = option(200, "passes over the training images; 0 only measures what --weights gives", low=0)
    rate_penalty: float = option(
        0.1,
        "weight of the FLOPs-weighted mean execution rate beside the cross-entropy (`alpha` of stages 1 and 2)",
        key="alpha",
        flags=("alpha", "rate_penalty"),
        low=0,
        source="Figurnov et al. 2017",
    )
    weights: str | None = option(
        None, "dense checkpoint (.safetensors, .pt), yours or a public one, whose backbone weights to start from"
    )

    def contradictions(self) -> Iterator[str]:
        """A network without any training."""
        if self.epochs == 0 and self.weights is None:
            yield "--epochs 0: nothing is learnt; name a trained network with --weights, or give at least 1"


@dataclass(frozen=True)
class CurvatureOptions(Checked):
    """Estimation of the Fisher information."""

    fisher_type: str = option(
        "true",
        "labels: true (sampled from the model) or exp (the given ones)",
        choices=("true", "exp"),
        source="Kunstner et al. 2019",
        measured=STAGE_2,
    )
    curvature_images: int = option(
        4096,
        "training images of the factor pass",
        low=2,
        measured=STUDY,
    )
    moment_images: int = option(
        512,
        "training images of the exact second moments; K and traces are from as many of the factor pass",
        low=2,
        measured=STUDY,
    )
    ma: float = option(
        0.0,
        "moving average of the factors over batches (0: plain mean)",
        low=0,
        high=0.999,
        source="Martens & Grosse 2015",
        measured=STAGE_2,
    )
    sua: bool = option(
        False,
        "count the positions of a kernel as uncorrelated: faster, and less exact in convolutions larger than 1x1",
        source="Grosse & Martens 2016",
        measured=STUDY,
    )
    use_full_cov_a: bool = option(
        False,
        "input and offset factors from the full covariance (nearest Kronecker product), not from their moments",
        source="Van Loan & Pitsianis 1993",
        measured=STUDY,
    )
    use_bias: bool = option(
        False,
        "score each layer's inputs without their mean, which its bias, or the BatchNorm behind, can make up for",
        source="Martens & Grosse 2015",
        measured=STAGE_2,
    )
    correct_eigenvalues: bool = option(
        False,
        "eigendamage: exact second moments in the eigenbasis instead of products of eigenvalues",
        source="George et al. 2018",
        measured="static.md#the-arms",
    )
    regularization: float = option(
        1e-6,
        "damping: what is added to the curvature where it is inverted, as a share of the layer's mean eigenvalue",
        above=0,
        source="Martens & Grosse 2015",
        measured=STAGE_2,
    )


@dataclass(frozen=True)
class CutOptions(Checked):
    """The cut: which units go, and how the rest is put together."""

    method: str | Extension = option(
        "fisher-tucker",
        f"pruning method: {', '.join(METHODS.built_in)}, that of an installed package, or module:Name of your own, an "
        "importable module or a file of the working directory",
        choices=METHODS,
        names=METHODS,
        measured="results_methods.md",
    )
    allocation: str = option(
        "auto",
        "how many units go from which layer: importance (one ranking of all scores), importance_per_flop (score over "
        "the FLOPs saved), rate_distortion (ranks of both sides together, least expected loss at the budget), peel "
        "(widths grow from a backbone with their layer's mean score), adapruner (widths in proportion to their "
        "block's mean score), igq (of a layer of n weights F n / (1 + F n) goes), or auto (the method's own)",
        choices=("auto", "importance", "importance_per_flop", "rate_distortion", "peel", "adapruner", "igq"),
        source="Shoham & Gersho 1988, rate_distortion; Vysogorets & Kempe 2021, igq",
        measured=STUDY,
    )
    prune_ratio: float | None = option(
        None,
        "share of the units cut in each iteration; several values are several runs",
        low=0,
        high=1,
        several=True,
        source="Wang et al. 2019",
    )
    prune_ratio_limit: float = option(
        0.9,
        "largest share of one side of one layer that may be cut",
        low=0,
        high=0.999,
        source="Wang et al. 2019, code",
    )
    target_flops: float | None = option(
        None,
        "budget instead of prune_ratio: a share of the dense FLOPs if <= 1, else FLOPs (2 x MACs); several values, "
        "with spaces between them or a list in a file, are several runs by one measuring",
        above=0,
        several=True,
    )
    target_params: float | None = option(
        None,
        "budget instead of prune_ratio: a share of the dense parameters if <= 1, else parameters; several values are "
        "several runs",
        above=0,
        several=True,
    )
    target_latency: float | None = option(
        None,
        "budget instead of prune_ratio, beside others if there are some: a share of the time of the dense network, "
        "both deployed, if <= 1, else milliseconds of a batch; several values are several runs",
        above=0,
        several=True,
    )
    target_effective: float | None = option(
        None,
        "effective sparsity instead of prune_ratio or a budget: the share of the dense network's weights that are not "
        "to be on any live path from the images to the outputs; several values are several runs",
        above=0,
        high=0.9999,
        several=True,
        source="Vysogorets & Kempe 2021",
    )
    exclude: tuple[str, ...] = option((), "patterns of names of layers that are left alone, e.g. backbone.conv")
    normalize: bool = option(
        False,
        "scale each layer's scores to sum 1 before they are compared",
        source="Wang et al. 2019, code",
        measured=STAGE_2,
    )
    allow_increase: bool = option(False, "let a layer's parameters grow where that saves FLOPs", measured=STAGE_2)
    rank_multiple: int = option(
        1,
        "ranks are multiples of this (direction methods): what processors compute in units of, e.g. 8, which makes the "
        "same FLOPs faster",
        low=1,
        measured="deploy.md#what-was-measured",
    )
    separable: str = option(
        "narrow",
        "which layers may become sums of components, 1x1 -> depthwise kxk -> 1x1, where that is expected to cost less "
        "than rotations (method fisher-tucker, allocation rate_distortion, with a budget): narrow (those of at most "
        "2^20 weights, as 3x3 with 256 channels), all (finding the components of 512 channels takes a minute) or none",
        choices=("narrow", "all", "none"),
        source="Lebedev et al. 2015",
    )
    decomp_method: str = option(
        "usual",
        "usual (the leading directions) or tucker (the best subspaces of those ranks, by orthogonal iteration)",
        choices=("usual", "tucker"),
        source="De Lathauwer et al. 2000",
        measured=STUDY,
    )
    hooi_sweeps: int = option(
        5,
        "sweeps of the orthogonal iteration of decomp_method tucker",
        low=1,
        source="De Lathauwer et al. 2000",
        measured=STUDY,
    )
    refit: str = option(
        "network",
        "what the least-squares refit takes: cores (those of the cut layers, each by itself), or network (all layers "
        "from the first cut one on; what a shortcut has lost, the sum's other branch makes up for)",
        choices=("cores", "network"),
        source="He et al. 2017",
        measured=STUDY,
    )
    refit_images: int = option(
        1024,
        "training images of the least-squares refit of the cut layers' cores (direction methods; 0: none)",
        low=0,
        source="He et al. 2017",
        measured=STUDY,
    )
    use_out_dependencies: bool = option(
        False, "channel methods: also cut channels that residual sums join", source="Fang et al. 2023"
    )
    round_to: int = option(
        1,
        "allocations peel and adapruner: widths are multiples of this, up to the limits of a layer; e.g. 8, what "
        "processors compute in units of",
        low=1,
        source="Liu et al. 2021",
    )
    peel_backbone: str = option(
        "uniform",
        "allocation peel: what widths grow from: uniform (the same share of each layer's channels), or global-gamma "
        "(those of one ranking of all scores)",
        choices=("uniform", "global-gamma"),
        source="Hou et al. 2021",
    )
    peel_pool: float = option(
        0.3,
        "allocation peel: share of the budget that the backbone leaves to the informative layers",
        low=0,
        high=1,
        source="Hou et al. 2021",
    )
    cut_weights: str = option(
        "auto",
        "what the cut network starts from: inherit (its share of the weights), scratch (newly initialised ones), "
        "imitate (its share, which then learns its parent's features stage by stage, and its logits), or auto (scratch "
        "for bcnet, which finds widths and no weights, else inherit)",
        choices=("auto", "inherit", "scratch", "imitate"),
        source="Liu et al. 2019; Zhou et al. 2020, imitate; Su et al. 2021, scratch",
        measured="results_methods.md",
    )

    def contradictions(self) -> Iterator[str]:
        """Two kinds of targets."""
        for name in ("target_flops", "target_params", "target_latency"):
            if self.target_effective is not None and (other := getattr(self, name)) is not None:
                said = f"--target_effective {self.target_effective}: is met by itself, and --{name} is {other}"
                yield f"{said}; give one of them, and --{name} none where a file names the other"


@dataclass(frozen=True)
class LatencyTarget(Checked):
    """Budgets of time (target_latency): the batch, the threads and the engine that they are of."""

    batch: int = option(32, "images of the batch that is timed", flags=("latency_batch",), key="latency_batch", low=1)
    threads: int | None = option(
        None,
        "threads that compute it (none: as many as torch has by default)",
        flags=("latency_threads",),
        key="latency_threads",
        low=1,
    )
    engine: str = option(
        "eager",
        "what the network will run in: eager (PyTorch, as hybridprune.deploy makes it, on the device of the run), "
        "onnxruntime (ONNX Runtime on the CPU), openvino (OpenVINO on the CPU) or compiled (eager by torch.compile)",
        flags=("latency_engine",),
        key="latency_engine",
        choices=("eager", "onnxruntime", "openvino", "compiled"),
    )
    seconds: float = option(
        120.0,
        "seconds that may be spent on timing layers in their forms: the longer, the more ranks are timed. What was "
        "timed on this machine before is not timed again",
        flags=("latency_seconds",),
        key="latency_seconds",
        above=0,
    )


@dataclass(frozen=True)
class SparsityOptions(Checked):
    """Methods that train before a cut: slimming, rni, greg-1/2, masksparsity, peel, adapruner, nuspm, dsp, bcnet."""

    sparse_epochs: int = option(
        10, "epochs of each training towards sparsity, before the cut", low=0, measured="results_methods.md"
    )
    sparse_start: str = option(
        "auto",
        "what the first of them starts from: parent (its weights), scratch (newly initialised ones), or auto (scratch "
        "for nuspm and bcnet, which were made for it, else parent)",
        choices=("auto", "parent", "scratch"),
        source="Lee et al. 2024; Su et al. 2021, scratch",
    )
    sparse_lr: float | None = option(
        None,
        "learning rate of these trainings (default: lr, that of the fine-tuning)",
        above=0,
        source="Jiang et al. 2022",
    )
    sparsity_weight: float | None = option(
        None, "weight of the regulariser in them (default: the method's published one)", low=0, source="Liu et al. 2017"
    )
    greg_interval: int = option(
        10, "greg-1, greg-2: steps from one rise of the L2 weight to the next", low=1, source="Wang et al. 2021"
    )
    greg_rise: float | None = option(
        None,
        "greg-1, greg-2: that rise (default: the published 1e-4, or more in a training that would else not get to "
        "sparsity_weight in two thirds of its steps)",
        above=0,
        source="Wang et al. 2021",
    )
    mask_rule: str = option(
        "magnitude",
        "masksparsity: a BatchNorm wants to lose channels by |gamma|, or by energy, their share of its gamma^2",
        choices=("magnitude", "energy"),
        source="Jiang et al. 2022",
    )
    mask_threshold: float | None = option(
        None,
        "masksparsity without a budget: the largest that goes (default: |gamma| of 0.01, energy of 1e-4)",
        low=0,
        source="Jiang et al. 2022",
    )
    mask_final: str = option(
        "auto",
        "masksparsity: what goes after the second training: threshold (what is then at most the threshold, by the vote "
        "again), mask (what was chosen before it), or auto (threshold without a budget, else mask)",
        choices=("auto", "threshold", "mask"),
        source="Jiang et al. 2022",
    )
    alpha_mac: float = option(
        0.5,
        "nuspm: weight of the squared distance of the masks' share of the FLOPs from the budget's (times 3.73^2, which "
        "makes it the published one of squared GMACs in ResNet-50)",
        low=0,
        source="Lee et al. 2024",
    )
    alpha_nuc: float = option(
        0.001, "nuspm: weight of the nuclear norm that masks take from the filters", low=0, source="Lee et al. 2024"
    )
    nuclear_interval: int = option(1, "nuspm: steps between two decompositions of the filters", low=1, measured=STAGE_2)
    freeze_at: float = option(
        0.722,
        "nuspm: share of sparse_epochs after which the masks do not change any more; the published 65 of 90 epochs",
        above=0,
        high=0.95,
        source="Lee et al. 2024",
    )
    rni_shift: float | None = option(
        None,
        "rni: the b of its regulariser; larger values push weaker channels only (default: the published 3, or 0 in a "
        "network with residual sums)",
        source="Suteu & Guo 2022",
    )
    dsp_groups: int = option(
        4,
        "dsp: groups of each layer's filters, at most; 1 is pruning of input channels",
        low=1,
        source="Park et al. 2023",
    )
    bcnet_bins: int = option(
        20, "bcnet: bins of each group's channels, at most; widths are so many of them", low=2, source="Su et al. 2021"
    )
    bcnet_losses: int = option(
        100,
        "bcnet: smallest losses of each width in training whose mean says where its search starts",
        low=1,
        source="Su et al. 2021",
    )
    bcnet_population: int = option(
        50, "bcnet: networks of each generation of its search", low=2, source="Su et al. 2021, code"
    )
    bcnet_generations: int = option(
        20,
        "bcnet: generations of its search, the drawn one included; each network is validated twice",
        low=1,
        source="Su et al. 2021, code",
    )


@dataclass(frozen=True)
class PruneOptions(Checked):
    """Stage 2: iterations, bring-back and fine-tuning."""

    pruner_id: int = option(
        0,
        "several processes: 0 each measures the curvature by itself, exactly as one would; 1 they share the images",
        choices=(0, 1),
    )
    max_iter: int = option(
        1, "iterations of cutting and fine-tuning", low=1, source="Wang et al. 2019", measured=STAGE_2
    )
    iter_ratios: tuple[float, ...] | None = option(
        None,
        "in place of prune_ratio the share of each iteration, with commas between them; a single one is for all "
        "iterations (default: prune_ratio in each)",
        low=0,
        high=1,
        source="Wang et al. 2019, code",
    )
    iter_epochs: tuple[int, ...] | None = option(
        None,
        "the epochs of fine-tuning in each iteration, written as iter_ratios (default: as epochs_start and epochs_end "
        "say)",
        low=0,
        source="Wang et al. 2019, code",
    )
    iter_lrs: tuple[float, ...] | None = option(
        None,
        "the learning rate of fine-tuning in each iteration, written as iter_ratios (default: lr)",
        above=0,
        source="Wang et al. 2019, code",
    )
    back_ratio: float = option(
        0.0,
        "share of the removed units brought back, trained and cut again",
        low=0,
        high=1,
        measured=STAGE_2,
    )
    pool_momentum: float = option(
        0.0,
        "momentum of the importance lost, by which layers are brought back",
        low=0,
        high=1,
        measured=STAGE_2,
    )
    interpolation: bool = option(
        False,
        "learning rate of the bring-back training: from 10 lr at compression 0 to lr at compression 1",
        measured=STAGE_2,
    )
    epochs_start: int = option(10, "epochs of fine-tuning where nothing is cut (compression 0)", low=0)
    epochs_end: int = option(
        20, "epochs of fine-tuning at compression 1; in between, linear from epochs_start to epochs_end", low=0
    )
    select: str = option(
        "best",
        "the weights that a fine-tuning ends with: those of the best epoch on validation, or of the last one. last is "
        "for --weights of somebody who trained on what is validation here: then the cut alone looks best",
        choices=("best", "last"),
        measured="results.md#a-small-run",
    )
    imitate_epochs: int = option(
        10,
        "cut_weights imitate: epochs in which each stage of blocks learns the parent's features, and then all of them "
        "its logits",
        low=1,
        source="Zhou et al. 2020",
    )
    imitate_lr: float = option(
        0.1,
        "cut_weights imitate: learning rate of these lessons, each on a cosine to 0, without weight decay",
        above=0,
        source="Zhou et al. 2020",
    )
    fix_rotation: bool = option(
        False,
        "fine-tune the cores only, not the rotations (separable layers have none)",
        source="Wang et al. 2019, code",
        measured=STAGE_2,
    )
    recipe: str = option(
        "default",
        "values of lr and kd_weight: default (distillation from the dense parent), published (that of EigenDamage: "
        "lr 0.02, without distillation) or masksparsity (of its authors: also 40 epochs). A flag's recipe goes before "
        "the keys of a file, and flags before all",
        choices=tuple(RECIPES),
        measured="results.md#networks-that-others-trained-to-the-end",
    )
    kd_weight: float = option(
        RECIPES["default"]["kd_weight"],
        "share of the loss that is distillation from the dense parent",
        low=0,
        high=1,
        source="Hinton et al. 2015",
        measured=STAGE_2,
    )
    kd_temperature: float = option(
        4.0, "temperature of the distillation", above=0, source="Hinton et al. 2015", measured=STAGE_2
    )
    rate_penalty: float = option(
        0.1,
        "weight of the FLOPs-weighted mean execution rate beside the cross-entropy (`alpha` of stages 1 and 2)",
        key="alpha",
        flags=("alpha", "rate_penalty"),
        low=0,
        source="Figurnov et al. 2017",
    )

    def contradictions(self) -> Iterator[str]:
        """Lists that have neither one entry nor one for each iteration."""
        for name in ("iter_ratios", "iter_epochs", "iter_lrs"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, self.max_iter):
                yield (
                    f"--{name} {','.join(map(str, values))}: has {len(values)} entries for --max_iter {self.max_iter}; "
                    "give one for each iteration, or one for all (several runs are several values of a budget)"
                )


@dataclass(frozen=True)
class CascadeOptions(Checked):
    """Stage 3: which networks are a cascade, and how it decides."""

    routing: str = option(
        "blocks",
        "what the gates decide: which residual blocks of one network run, or whether an image goes on from one network "
        "to the next larger one (cascade)",
        choices=("blocks", "cascade"),
        source="Wang et al. 2018, blocks; Viola & Jones 2001, cascade",
        measured="cascades.md",
    )
    members: tuple[str, ...] = option(
        (),
        "cascade: folders of finished runs of stages 1 and 2, two or more, with commas between them",
        measured="cascades.md",
    )
    policy: str = option(
        "learned",
        "cascade: gates that are trained by the exact policy gradient, or one threshold on the margin",
        choices=("learned", "margin"),
        source="Williams 1992, learned",
        measured="cascades.md",
    )
    answer: str = option(
        "average",
        "cascade: the mean of the calibrated logits of all members that ran, or those of the last one",
        choices=("average", "last"),
        measured="cascades.md",
    )
    trunk: int = option(
        0,
        "cascade, with train members: the cheapest member goes on from the stem and so many blocks of the second one, "
        "which are counted once and stay as they are; its other blocks learn to (0: each has its own)",
        low=0,
        high=DEEPEST,
        source="Teerapittayanon et al. 2016",
    )
    weight_floor: float = option(
        0.2,
        "train members: share of an image's weights that is the same for all members; the rest is for the member "
        "behind which the gates would stop",
        high=1,
        above=0,
        source="Han et al. 2022",
    )
    kd_small: float = option(
        0.5,
        "train members: share of the loss of all members but the last that is distillation from the average of all",
        low=0,
        high=1,
        source="Hinton et al. 2015",
    )
    kd_large: float = option(
        0.1,
        "train members: the same share for the last member; a small one, so that it stays different",
        low=0,
        high=1,
        source="Hinton et al. 2015",
    )

    def contradictions(self) -> Iterator[str]:
        """The contradictions of members and the kind of routing."""
        if self.routing == "cascade" and len(self.members) < 2:
            yield "--routing cascade: needs the runs that it joins; give --members RUN,RUN with two or more"
        if self.routing == "blocks" and self.members:
            yield f"--members {self.members[0]}: are those of a cascade; add --routing cascade"
        if self.routing == "blocks" and self.trunk:
            yield f"--trunk {self.trunk}: is shared by members of a cascade; add --routing cascade"


@dataclass(frozen=True)
class RoutingOptions(Checked):
    """Stage 3: how the gates learn."""

    epochs: int = option(100, "passes over the training images", low=1)
    reward_scale: float = option(
        0.1,
        "reward for skipping the whole network's FLOPs, in nats of cross-entropy (`--alpha` of stage 3; config.json's "
        "`alpha` is the rate penalty of stages 1 and 2)",
        flags=("alpha", "reward_scale"),
        low=0,
        source="Wang et al. 2018",
    )
    target_flops: float | None = option(
        None,
        "budget of expected FLOPs, gates counted: a share of the dense FLOPs if <= 1, else FLOPs (2 x MACs); "
        "reward_scale is then adapted until it is met on validation",
        above=0,
        source="Stooke et al. 2020",
    )
    # Not `start`: torchrun would take that for an abbreviation of its own --start-method.
    gate_start: str = option(
        "parent",
        "what the gates start from: parent (as they are), or subset (they are first taught the best fixed subset of "
        "blocks for target_flops, and are undecided about those at its edge)",
        choices=("parent", "subset"),
        measured="dynamic.md",
    )
    gate_sharpen: float = option(
        1.0,
        "reinforce, gumbel: a temperature that divides the gates' logits once, before training, e.g. 0.05 after stages "
        "with --gating soft: their probabilities become nearly 0 or 1, and greedy decisions stay (1: as they are)",
        above=0,
        high=1,
        source="Wang et al. 2018, code",
    )
    price_step: float = option(
        0.02,
        "step of that adaptation: change of log(reward_scale) at 100 % excess",
        above=0,
        source="Stooke et al. 2020",
        measured=STAGE_3,
    )
    estimator: str = option(
        "reinforce",
        "reinforce (policy gradient), or gumbel (straight-through samples, with the FLOPs in the loss)",
        choices=("reinforce", "gumbel"),
        source="Williams 1992; Jang et al. 2017",
        measured="dynamic.md",
    )
    train: str = option(
        "backbone,gates",
        "what learns: the gates and, of blocks, the backbone; or the gates alone. A cascade's gates alone, or also its "
        "members, for what each will keep, and only if that makes the cascade better",
        choices=("backbone,gates", "gates", "members"),
        source="Han et al. 2022, members",
        measured="dynamic.md",
    )
    batchnorm: str = option(
        "frozen",
        "frozen (training uses and keeps the parent's statistics), or trained (of the batch, as in stages 1 and 2; "
        "allows their learning rates; reinforce then explores in extra passes)",
        choices=("frozen", "trained"),
        measured="dynamic.md",
    )
    kd_weight: float = option(
        0.0,
        "share of the loss that is distillation from the dense network",
        low=0,
        high=1,
        source="Hinton et al. 2015",
        measured=STAGE_3,
    )
    kd_temperature: float = option(4.0, "temperature of the distillation", above=0, source="Hinton et al. 2015")
    gamma: float = option(
        1.0,
        "reinforce: discount of later gates' rewards",
        low=0,
        high=1,
        source="Wang et al. 2018",
        measured=STAGE_3,
    )
    rl_weight: float = option(
        0.1, "reinforce: weight of the policy gradient beside the cross-entropy", low=0, source="Wang et al. 2018"
    )
    rl_warmup: float = option(
        0.1,
        "reinforce: share of the epochs in which only the backbone learns, on explored routes",
        low=0,
        high=1,
        measured=STAGE_3,
    )
    gate_lr_factor: float = option(10.0, "the gates' learning rate over lr, the backbone's", above=0, measured=STAGE_3)
    gate_grad_norm: float = option(
        1.0,
        "the gates' gradient is clipped to this norm",
        above=0,
        source="Pascanu et al. 2013",
        measured=STAGE_3,
    )
    baseline: str = option(
        "counterfactual",
        "reinforce: subtracted from the return: none, moving_average, self_critical (a greedy rollout of the same "
        "images), or counterfactual (one gate an image is flipped, which credits that gate alone)",
        choices=("none", "moving_average", "self_critical", "counterfactual"),
        source="Rennie et al. 2017, self_critical; Foerster et al. 2018, counterfactual",
        measured="dynamic.md",
    )
    flip_from: str = option(
        "greedy",
        "counterfactual: a gate is flipped while the others decide greedily, or while they are sampled from the policy "
        "(then, with --no-credit_scale, the gradient is without bias that of the policy's expected return)",
        choices=("greedy", "sampled"),
        measured="dynamic.md",
    )
    credit_scale: bool = option(
        True,
        "counterfactual: divide each gate's credits by their own running root mean square",
        measured=STAGE_3,
    )
    exploration: float = option(
        0.1,
        "reinforce: the policy's probabilities are squeezed into [exploration, 1 - exploration]",
        low=0,
        high=0.5,
        source="Wu et al. 2018",
        measured=STAGE_3,
    )
    temperature: float = option(
        1.0,
        "divides the gates' logits in the policy; greedy decisions do not change",
        above=0,
        source="Jang et al. 2017",
        measured=STAGE_3,
    )
    entropy_bonus: float = option(
        0.0,
        "reinforce: weight of the policy's entropy in the reward",
        low=0,
        source="Williams & Peng 1991",
        measured=STAGE_3,
    )
    rate_bound: float = option(
        0.0,
        "each block's mean execution rate is pushed into [rate_bound, 1 - rate_bound]; the bound falls to 0 over the "
        "first half of the training",
        low=0,
        high=0.5,
        source="Veit & Belongie 2018",
        measured="dynamic.md",
    )
    rate_bound_weight: float = option(5.0, "weight of the squared distance from these bounds", low=0, measured=STAGE_3)

    def contradictions(self) -> Iterator[str]:
        """The contradictions of options that need a backbone that learns, a budget or a price."""
        if self.train == "gates" and self.batchnorm == "trained":
            yield (
                "--batchnorm trained: changes the backbone's statistics, which --train gates leaves alone; "
                "use --batchnorm frozen"
            )
        if self.train == "gates" and self.estimator == "reinforce" and self.kd_weight > 0:
            yield (
                "--kd_weight: distils the backbone, which --train gates leaves alone; leave it out, or use --estimator "
                "gumbel, whose gates learn from the loss as well"
            )
        if self.target_flops is None and self.gate_start == "subset":
            yield "--gate_start subset: needs the budget that it has to meet; give --target_flops as well"
        if self.gate_start == "subset" and self.gate_sharpen != 1:
            yield (
                f"--gate_sharpen {self.gate_sharpen}: is for the parent's gates, which --gate_start subset teaches "
                "anew; leave one of them out"
            )
        if self.target_flops is not None and self.reward_scale == 0:
            yield "--alpha 0: a budget adapts it by factors; give a positive start, e.g. 0.1"


BUDGETS = ("target_flops", "target_params", "target_latency", "target_effective")
"""The options of a cut that bound what it leaves; without one of them a ratio of the units goes."""
SCRIPTS = {"sp": "main_sp.py", "prune": "main_prune.py", "rl": "main_rl_prune.py"}
"""The stages in their order, and their scripts."""
SUBCOMMANDS = {"sp": "train", "prune": "prune", "rl": "route"}
"""The stages as subcommands of ``hybridprune``."""


@dataclass(frozen=True)
class SpConfig:
    """Everything stage 1 reads."""

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    averaging: AveragingOptions = field(default_factory=AveragingOptions)
    compiler: CompileOptions = field(default_factory=CompileOptions)
    gating: GatingOptions = field(default_factory=GatingOptions)
    stage: SupervisedOptions = field(default_factory=SupervisedOptions)


@dataclass(frozen=True)
class PruneConfig:
    """Everything stage 2 reads."""

    run: RunOptions = field(default_factory=RunOptions)
    parent: ParentOptions = field(default_factory=ParentOptions)
    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    optim: OptimOptions = field(default_factory=lambda: OptimOptions(RECIPES["default"]["lr"], scheduler_id="up-down"))
    loss: LossOptions = field(default_factory=LossOptions)
    averaging: AveragingOptions = field(default_factory=AveragingOptions)
    compiler: CompileOptions = field(default_factory=CompileOptions)
    curvature: CurvatureOptions = field(default_factory=CurvatureOptions)
    cut: CutOptions = field(default_factory=lambda: CutOptions(prune_ratio=0.5))
    latency: LatencyTarget = field(default_factory=LatencyTarget)
    sparsity: SparsityOptions = field(default_factory=SparsityOptions)
    gating: GatingOptions = field(default_factory=GatingOptions)
    stage: PruneOptions = field(default_factory=PruneOptions)

    def __post_init__(self) -> None:
        refuse(self, self.contradictions(), (self.cut, self.stage))

    def contradictions(self) -> Iterator[str]:
        """Ratios beside a budget, which is instead of them."""
        budget = next((name for name in BUDGETS if getattr(self.cut, name) is not None), None)
        if self.stage.iter_ratios is not None and budget is not None:
            yield (
                f"--iter_ratios {','.join(map(str, self.stage.iter_ratios))}: is not read where there is a budget, "
                f"--{budget} {getattr(self.cut, budget)}; give --{budget} none, or leave the ratios out"
            )


@dataclass(frozen=True)
class RlConfig:
    """Everything stage 3 reads."""

    run: RunOptions = field(default_factory=RunOptions)
    parent: ParentOptions = field(default_factory=ParentOptions)
    data: DataOptions = field(default_factory=lambda: DataOptions(batch_size=256))
    network: NetworkOptions = field(default_factory=NetworkOptions)
    optim: OptimOptions = field(default_factory=lambda: OptimOptions(lr=0.001))
    compiler: CompileOptions = field(default_factory=CompileOptions)
    cascade: CascadeOptions = field(default_factory=CascadeOptions)
    stage: RoutingOptions = field(default_factory=RoutingOptions)

    def __post_init__(self) -> None:
        refuse(self, self.contradictions(), (self.compiler, self.cascade, self.stage))

    def contradictions(self) -> Iterator[str]:
        """The contradictions between two concerns."""
        if self.stage.train == "gates" and self.stage.estimator == "reinforce" and self.compiler.compile != "off":
            yield (
                f"--compile {self.compiler.compile}: with --train gates all rollouts skip blocks, which does not "
                "compile; leave it out, or use --estimator gumbel"
            )
        if self.cascade.routing == "cascade":
            if self.stage.target_flops is None:
                yield "--routing cascade: needs the budget that it has to meet; give --target_flops as well"
            if self.parent.checkpoint_file is not None:
                yield "--checkpoint_file: a cascade starts from its --members; leave it out"
            blocks, members = RoutingOptions(), self.stage.train == "members"
            for name in ("estimator", "gate_start", "gate_sharpen", *(() if members else ("train", "batchnorm"))):
                if (value := getattr(self.stage, name)) != getattr(blocks, name):
                    yield f"--{name} {value}: is for gates at blocks; leave it out with --routing cascade"
            if self.cascade.trunk and not members:
                yield (
                    f"--trunk {self.cascade.trunk}: the cheapest member has never seen the features that it would go "
                    "on from; add --train members"
                )
            if members and self.stage.kd_weight > 0:
                yield "--kd_weight: distils gated blocks; members are distilled by --kd_small and --kd_large"
        elif self.stage.train == "members":
            yield "--train members: trains those of a cascade; add --routing cascade and --members RUN,RUN"
