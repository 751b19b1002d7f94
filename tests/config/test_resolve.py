"""Defaults, configuration file and flags: which wins, and what each refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from hybridprune.config import Invocation, PruneConfig, RlConfig, SpConfig, identity, resolve, to_json
from hybridprune.config.concern import Contradiction
from hybridprune.config.recipes import RECIPES
from hybridprune.config.resolve import as_typed
from hybridprune.errors import UserError

Config = SpConfig | PruneConfig | RlConfig
STAGES = [SpConfig(), PruneConfig(), RlConfig()]


def parse(default: Config, *argv: str, config_path: Path | None = None) -> Invocation[Any]:
    path = None if config_path is None else str(config_path)
    return resolve(default, argv, prog="main.py", description="A stage.", config_path=path)  # type: ignore[type-var]


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a config.json, given its keys or its raw text."""

    def write(text: str | None = None, **keys: Any) -> Path:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(keys) if text is None else text)
        return path

    return write


# --- precedence ---


def test_flag_beats_file_beats_default(config_file: Callable[..., Path]) -> None:
    path = config_file(epochs=7, lr=0.5)
    config = parse(SpConfig(), "--epochs", "3", config_path=path).config
    assert config.stage.epochs == 3
    assert config.optim.lr == 0.5
    assert config.optim.momentum == SpConfig().optim.momentum


def test_config_path_flag_beats_the_commands_own_file(config_file: Callable[..., Path], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"epochs": 5}')
    assert parse(SpConfig(), "--config_path", str(other), config_path=config_file(epochs=7)).config.stage.epochs == 5


def test_without_a_file_or_flags_the_default_is_returned() -> None:
    for default in STAGES:
        assert parse(default) == Invocation(default, resume=False, dry_run=False, print_config=False)


def test_the_file_can_take_back_what_a_default_turned_on(config_file: Callable[..., Path]) -> None:
    path = config_file(augment=False, max_train_samples=None)
    assert parse(SpConfig(), config_path=path).config.data.augment is False
    assert parse(SpConfig(), "--augment", config_path=path).config.data.augment is True


@pytest.mark.parametrize("spelling", ["--dry-run", "--dry_run"])
def test_wishes(spelling: str) -> None:
    assert parse(SpConfig(), spelling).dry_run and not parse(SpConfig(), spelling).resume
    assert parse(SpConfig(), "--resume").resume
    assert parse(SpConfig(), "--print-config").print_config and parse(SpConfig(), "--print_config").print_config


# --- names that differ between file, flag and field ---


def test_alpha_is_the_rate_penalty_of_stages_1_and_2_in_the_file(config_file: Callable[..., Path]) -> None:
    path = config_file(alpha=0.3)
    assert parse(SpConfig(), config_path=path).config.stage.rate_penalty == 0.3
    assert parse(PruneConfig(), config_path=path).config.stage.rate_penalty == 0.3
    assert parse(RlConfig(), config_path=path).config == RlConfig()


def test_alpha_flag_is_the_reward_scale_in_stage_3() -> None:
    assert parse(RlConfig(), "--alpha", "0.7").config.stage.reward_scale == 0.7
    assert parse(RlConfig(), "--reward_scale", "0.7").config.stage.reward_scale == 0.7
    assert parse(SpConfig(), "--alpha", "0.7").config.stage.rate_penalty == 0.7
    assert parse(SpConfig(), "--rate_penalty", "0.7").config.stage.rate_penalty == 0.7


def test_bs_is_the_batch_size_and_the_file_uses_the_fields_name(config_file: Callable[..., Path]) -> None:
    assert parse(SpConfig(), "--bs", "32").config.data.batch_size == 32
    assert parse(SpConfig(), "--batch_size", "32").config.data.batch_size == 32
    assert parse(SpConfig(), config_path=config_file(batch_size=32)).config.data.batch_size == 32
    with pytest.raises(UserError, match="unknown key 'bs'"):
        parse(SpConfig(), config_path=config_file(bs=32))


@pytest.mark.parametrize(("id", "name"), [(0, "exponential"), (1, "stair"), (2, "up-down"), (3, "cosine")])
def test_scheduler_by_number_or_name(id: int, name: str, config_file: Callable[..., Path]) -> None:
    for value in (id, str(id), name):
        assert parse(SpConfig(), config_path=config_file(scheduler_id=value)).config.optim.scheduler_id == name
        assert parse(SpConfig(), "--scheduler_id", str(value)).config.optim.scheduler_id == name


@pytest.mark.parametrize("default", STAGES)
def test_a_scheduler_brings_its_own_points_unless_some_are_given(
    default: Config, config_file: Callable[..., Path]
) -> None:
    def points(*argv: str, **keys: Any) -> dict[str, float]:
        return to_json(parse(default, *argv, config_path=config_file(**keys)).config)["scheduler_params"]

    assert points("--scheduler_id", "stair") == {"0.5": 0.1, "0.75": 0.01}
    assert points() == points("--scheduler_id", "up-down" if isinstance(default, PruneConfig) else "stair")
    assert points("--scheduler_id", "cosine") == points(scheduler_id=3) == {"0": 0.01, "0.05": 1, "1": 0}
    assert points("--scheduler_id", "up-down") == {"0": 0.2, "0.1": 1, "1": 0}
    assert points("--scheduler_id", "exponential") == {"0": 1, "1": 0.01}
    assert points("--scheduler_id", "cosine", scheduler_params={"1": 0.5}) == {"1": 0.5}
    assert points("--scheduler_id", "cosine", "--scheduler_params", "{}") == {}


def test_a_key_of_another_stage_is_legal_and_ignored(config_file: Callable[..., Path]) -> None:
    assert parse(SpConfig(), config_path=config_file(prune_ratio=0.3, gamma=0.9)).config == SpConfig()


def test_a_recipe_gives_what_nobody_gave(config_file: Callable[..., Path]) -> None:
    def training(*argv: str, **keys: Any) -> tuple[str, float, float]:
        config = parse(PruneConfig(), *argv, config_path=config_file(**keys)).config
        return config.stage.recipe, config.optim.lr, config.stage.kd_weight

    own = ("default", PruneConfig().optim.lr, PruneConfig().stage.kd_weight)
    assert training() == training(recipe="default") == own and own[2] > 0
    published = RECIPES["published"]
    assert training("--recipe", "published") == ("published", published["lr"], 0.0) != own
    assert training(recipe="published") == training("--recipe", "published")
    assert training("--recipe", "default", recipe="published") == own
    assert training("--lr", "0.5", recipe="published") == ("published", 0.5, 0.0)
    assert training(recipe="published", kd_weight=0.2) == ("published", published["lr"], 0.2)
    assert training("--recipe", "published", kd_weight=0.2) == ("published", published["lr"], 0.0)
    assert training("--recipe", "default", recipe="published", lr=0.5) == own
    with pytest.raises(UserError, match=r"^--recipe \"secret\": must be one of default, published"):
        training("--recipe", "secret")


def test_recipes_name_options_of_stage_2() -> None:
    keys = set(to_json(PruneConfig()))
    for name, values in RECIPES.items():
        assert values.keys() <= keys - {"recipe"}, name
        resolve(PruneConfig(), ["--recipe", name], prog="", description="")


def test_a_network_of_ones_own_has_the_size_that_was_given_or_none(config_file: Callable[..., Path]) -> None:
    own = ["--network", "mine:net"]
    for default in (SpConfig(), PruneConfig(), RlConfig()):
        for words, file, depth, width in (
            ([], {}, 32, 64),
            ([], {"depth": None, "width": None}, 32, 64),
            (own, {}, None, None),
            ([*own, "--depth", "32"], {"width": 8}, 32, 8),
            ([*own, "--depth", "2"], {"width": None}, 2, None),
        ):
            config = parse(default, *words, config_path=config_file(**file)).config
            assert (config.network.depth, config.network.width) == (depth, width)
            again = parse(default, *own[: len(words)], config_path=config_file(**_without(to_json(config), "network")))
            assert (again.config.network.depth, again.config.network.width) == (depth, width)


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


# --- refusals: the message names the place, the value and the remedy ---

BAD_VALUES: list[tuple[Config, str, Any, str]] = [
    (SpConfig(), "epochs", -1, "must be at least 0"),
    (SpConfig(), "epochs", -3, "must be at least 0"),
    (SpConfig(), "epochs", 1.5, "must be a whole number"),
    (SpConfig(), "epochs", True, "must be a whole number"),
    (SpConfig(), "epochs", None, "must be a whole number"),
    (SpConfig(), "epochs", "12", "must be a whole number"),
    (SpConfig(), "lr", "0.1", "must be a number"),
    (SpConfig(), "lr", 0, "must be above 0"),
    (SpConfig(), "lr", -0.1, "must be above 0"),
    (SpConfig(), "lr", float("nan"), "must be finite"),
    (SpConfig(), "lr", float("inf"), "must be finite"),
    (SpConfig(), "momentum", 1.01, "must be at most 1"),
    (SpConfig(), "batch_size", 1, "must be at least 2"),
    (SpConfig(), "resize", 7, "must be at least 8"),
    (SpConfig(), "seed", -1, "must be at least 0"),
    (SpConfig(), "augment", "false", "must be true or false"),
    (SpConfig(), "augment", 0, "must be true or false"),
    (SpConfig(), "dataset", 3, "must be a text"),
    (SpConfig(), "network", 3, "must be a text"),
    (SpConfig(), "shakedrop", 1.5, "must be at most 1"),
    (SpConfig(), "scheduler_id", 4, "must be a text"),
    (SpConfig(), "scheduler_id", "stairs", "did you mean stair?"),
    (SpConfig(), "precision", "float16", "must be one of fp32, bf16, fp16"),
    (SpConfig(), "compile", True, "must be a text, one of off, on, auto"),
    (SpConfig(), "compile", "yes", "must be one of off, on, auto"),
    (SpConfig(), "scheduler_params", [0.5, 0.1], "must map shares of the epochs"),
    (SpConfig(), "scheduler_params", {"0.5": "0.1"}, "must map shares of the epochs"),
    (SpConfig(), "scheduler_params", {"0.5": True}, "must map shares of the epochs"),
    (SpConfig(), "scheduler_params", {"1.5": 0.1}, "must map shares of the epochs"),
    (SpConfig(), "scheduler_params", {"half": 0.1}, "must map shares of the epochs"),
    (SpConfig(), "scheduler_params", {"0.5": float("inf")}, "must map shares of the epochs"),
    (SpConfig(), "scheduler_params", {"0.5": -0.1}, "must be at least 0"),
    (PruneConfig(), "prune_ratio_limit", 1.0, "must be at most 0.999"),
    (PruneConfig(), "target_flops", 0, "must be above 0"),
    (PruneConfig(), "pruner_id", 2, "must be one of 0, 1"),
    (PruneConfig(), "decomp_method", "svd", "must be one of usual, tucker"),
    (PruneConfig(), "back_ratio", 1.1, "must be at most 1"),
    (PruneConfig(), "exclude", "backbone.conv", "must be a list of names or patterns"),
    (PruneConfig(), "exclude", ["backbone.conv", 3], "must be a list of names or patterns"),
    (SpConfig(), "gate", "lstm", "must be one of rnn, ff1, ff2, none"),
    (SpConfig(), "gating", "harder", "did you mean hard?"),
    (PruneConfig(), "gate_noise", -1.0, "must be at least 0"),
    (RlConfig(), "target_flops", 0, "must be above 0"),
    (RlConfig(), "price_step", 0, "must be above 0"),
    (RlConfig(), "estimator", "reinforced", "did you mean reinforce?"),
    (RlConfig(), "train", "backbone", "must be one of backbone,gates, gates"),
    (RlConfig(), "kd_weight", 1.1, "must be at most 1"),
    (RlConfig(), "kd_temperature", 0, "must be above 0"),
    (RlConfig(), "entropy_bonus", -0.1, "must be at least 0"),
    (RlConfig(), "rate_bound", 0.6, "must be at most 0.5"),
    (RlConfig(), "rate_bound_weight", -1.0, "must be at least 0"),
    (RlConfig(), "exploration", 0.6, "must be at most 0.5"),
    (RlConfig(), "baseline", "selfcritical", "did you mean self_critical?"),
]


@pytest.mark.parametrize(("default", "key", "value", "reason"), BAD_VALUES)
def test_bad_value_in_the_file(
    default: Config, key: str, value: Any, reason: str, config_file: Callable[..., Path]
) -> None:
    path = config_file(**{key: value})
    with pytest.raises(UserError) as caught:
        parse(default, config_path=path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {key} ") and reason in message and "\n" not in message


@pytest.mark.parametrize(
    ("default", "argv", "message"),
    [
        (SpConfig(), ["--epochs", "-1"], "--epochs -1: must be at least 0"),
        (SpConfig(), ["--epochs", "ten"], '--epochs "ten": must be a whole number'),
        (SpConfig(), ["--epochs", "1e2"], '--epochs "1e2": must be a whole number'),
        (SpConfig(), ["--lr", "fast"], '--lr "fast": must be a number'),
        (SpConfig(), ["--lr", "nan"], "--lr NaN: must be finite"),
        (SpConfig(), ["--bs", "1"], "--bs 1: must be at least 2"),
        (SpConfig(), ["--scheduler_params", "{0.5: 0.1}"], "must map shares of the epochs"),
        (SpConfig(), ["--scheduler_id", "4"], "must be one of exponential, stair, up-down, cosine"),
        (PruneConfig(), ["--pruner_id", "2"], "--pruner_id 2: must be one of 0, 1"),
        (PruneConfig(), ["--prune_ratio", "50"], "--prune_ratio 50.0: must be at most 1"),
        # `--resume False` must never mean `--resume`.
        (SpConfig(), ["--resume", "False"], "False: no such flag"),
        (SpConfig(), ["--augment", "False"], "False: no such flag"),
        (SpConfig(), ["--augment=False"], "see --help"),
        (SpConfig(), ["--epochs"], "--epochs: expected one argument; see --help"),
        (SpConfig(), ["--epoch", "3"], "--epoch: no such flag, did you mean --epochs?; see --help"),
        (SpConfig(), ["--epoch=3"], "did you mean --epochs?"),
        (PruneConfig(), ["--budget", "0.5"], "--budget: no such flag, did you mean --target_flops?; see --help"),
        (SpConfig(), ["--budget", "0.5"], "--budget: no such flag; see --help"),
        (
            PruneConfig(),
            ["--method", "L1"],
            '--method "L1": unknown, did you mean l1? It must be one of fisher-tucker, ',
        ),
        (SpConfig(), ["--prune_ratio", "0.5"], "--prune_ratio: no such flag"),
        (RlConfig(), ["--rate_penalty", "0.5"], "--rate_penalty: no such flag"),
    ],
)
def test_bad_flag(default: Config, argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(default, *argv)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_key_with_suggestion(config_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"config\.json: unknown key 'weigth_decay', did you mean weight_decay\?"):
        parse(SpConfig(), config_path=config_file(weigth_decay=0.1))
    with pytest.raises(UserError, match=r"unknown key 'zzz'; remove or rename it"):
        parse(SpConfig(), config_path=config_file(zzz=1))


def test_a_file_that_is_no_configuration(config_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config_path .*nowhere\.json: cannot be read"):
        parse(SpConfig(), "--config_path", str(tmp_path / "nowhere.json"))
    with pytest.raises(UserError, match=r"not valid JSON \(.*line 1 column"):
        parse(SpConfig(), config_path=config_file("{'epochs': 3}"))
    with pytest.raises(UserError, match="must hold one JSON object"):
        parse(SpConfig(), config_path=config_file("[1, 2]"))
    with pytest.raises(UserError, match="cannot be read"):
        parse(SpConfig(), config_path=tmp_path)


def test_names_are_a_list_in_the_file_and_parted_by_commas_in_a_flag(config_file: Callable[..., Path]) -> None:
    wanted = ("backbone.conv", "*.projection.*")
    assert parse(PruneConfig(), "--exclude", "backbone.conv, *.projection.*").config.cut.exclude == wanted
    assert parse(PruneConfig(), config_path=config_file(exclude=[*wanted])).config.cut.exclude == wanted
    none = parse(PruneConfig(), "--exclude", "none", config_path=config_file(exclude=[*wanted]))
    assert none.config.cut.exclude == ()


@pytest.mark.parametrize("words", ["", " ", ","])
def test_a_flag_of_names_that_holds_none_is_refused(words: str) -> None:
    """A variable of a script that is empty by mistake is not all classes."""
    with pytest.raises(UserError, match=r"--classes .*: must be a list of names or patterns"):
        parse(PruneConfig(), "--classes", words)


def test_bounds_are_legal_where_they_are_inclusive() -> None:
    config = parse(PruneConfig(), "--prune_ratio", "1", "--epochs_start", "0", "--momentum", "0").config
    assert (config.cut.prune_ratio, config.stage.epochs_start, config.optim.momentum) == (1.0, 0, 0.0)


# --- round trip ---


def every_change(default: Config) -> st.SearchStrategy[dict[str, Any]]:
    """Some keys of the configuration with other legal values of their kind."""
    strategies: dict[str, st.SearchStrategy[Any]] = {}
    for concern in dataclasses.fields(default):
        values = getattr(default, concern.name)
        for f in dataclasses.fields(values):
            low, high = f.metadata["low"], f.metadata["high"]
            value = getattr(values, f.name)
            if f.metadata["choices"] is not None:
                strategy: st.SearchStrategy[Any] = st.sampled_from(tuple(f.metadata["choices"]))
            elif isinstance(value, bool):
                strategy = st.booleans()
            elif isinstance(value, int):
                strategy = st.integers(int(low), 10**6 if high is None else int(high))
            elif isinstance(value, float):
                strategy = st.floats(1e-3 if low is None else low, 1e6 if high is None else high)
            elif isinstance(value, str):
                strategy = st.text().filter(lambda text: ":" not in text)  # module:Name in a file is refused
            elif isinstance(value, tuple):
                strategy = st.lists(st.text(min_size=1), max_size=3)
            elif isinstance(value, dict):
                strategy = st.dictionaries(st.floats(0, 1).map(str), st.floats(0, 100), max_size=4)
            else:
                strategy = st.none()
            strategies[f.metadata["key"] or f.name] = strategy
    return st.fixed_dictionaries({}, optional=strategies)


@pytest.mark.parametrize("default", STAGES, ids=lambda default: type(default).__name__)
@settings(max_examples=20)
@given(data=st.data())
def test_resolved_configuration_read_back_is_the_same(
    default: Config, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changes = data.draw(every_change(default))
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    path.write_text(json.dumps(changes))
    try:
        config = parse(default, config_path=path).config
    except UserError as error:
        assert isinstance(error.__cause__, Contradiction), error
        reject()
    written = to_json(config)
    assert {key: written[key] for key in changes} == changes
    path.write_text(json.dumps(written))
    assert parse(default, config_path=path).config == config


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0, exclude_min=True))
def test_a_flags_number_is_read_exactly(lr: float) -> None:
    assert parse(SpConfig(), "--lr", repr(lr)).config.optim.lr == lr


def test_every_default_passes_its_own_checks(config_file: Callable[..., Path]) -> None:
    for default in STAGES:
        assert parse(default, config_path=config_file(**to_json(default))).config == default


def test_identity_leaves_out_where_things_lie() -> None:
    for default in STAGES:
        keys = identity(default)
        assert keys < to_json(default).keys()
        assert keys.isdisjoint({"result_dir", "data_dir", "cache_dir", "device", "num_workers", "log_interval"})
        assert {"seed", "lr", "depth", "width", "batch_size", "dataset", "precision"} <= keys


def test_help_names_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    for default in STAGES:
        with pytest.raises(SystemExit) as exit:
            parse(default, "--help")
        text = " ".join(capsys.readouterr().out.split())
        assert exit.value.code == 0
        for key, value in to_json(default).items():
            assert f"--{key} " in text or f"--{key}," in text
            assert f"(default: {as_typed(tuple(value) if isinstance(value, list) else value)})" in text
