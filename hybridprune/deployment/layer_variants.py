"""The forms of factored or branched layers and 1x1 convolutions, which compute the same; the fastest by the clock."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from hybridprune.deployment.choice import Choice
from hybridprune.deployment.fold import is_hooked, is_plain_layer, replace_everywhere
from hybridprune.deployment.pointwise import PointwiseProduct, has_channels_last, is_product
from hybridprune.measure.latency import Stopwatch
from hybridprune.models.branched import BranchedConv2d, unbranched
from hybridprune.models.factored import DENSE as DENSE_RANKS
from hybridprune.models.factored import FactoredLayer, Ranks, form, form_name
from hybridprune.models.factored_weights import build_layer, dense_form, outline
from hybridprune.models.replace import memory_format, replace_module
from hybridprune.progress_bar import bar

Layer = nn.Conv2d | nn.Linear
DENSE = form_name(DENSE_RANKS)
BRANCHED = "branches"
PRODUCTS = " with products"
"""How the names of forms end whose 1x1 convolutions are matrix products."""


@torch.no_grad()
def forms_of(layer: nn.Module) -> dict[str, nn.Module]:
    """Every form that a factored or branched layer or a 1x1 convolution can take without loss, its own (itself) first.

    A rotation that is left out is multiplied into the core, in double precision. Without branches there are zeros for
    what a filter does not read. Then the same forms once more, those
    that have 1x1 convolutions, with matrix products in their place.
    """
    assert isinstance(layer, FactoredLayer | BranchedConv2d) or is_product(layer), type(layer)
    if isinstance(layer, BranchedConv2d):
        dense = unbranched(layer).to(memory_format=memory_format(layer.parameters()))  # type: ignore[call-overload]
        forms = {BRANCHED: layer, DENSE: dense}
    else:
        forms = _factorings(layer) if isinstance(layer, FactoredLayer) else {DENSE: layer}
    products = {f"{name}{PRODUCTS}": with_products(each) for name, each in forms.items()}
    return forms | {name: each for name, each in products.items() if each is not None}


def with_products(layer: nn.Module) -> nn.Module | None:
    """``layer``, of the same weights, with its 1x1 convolutions as matrix products; None if it has none."""
    if is_product(layer):
        assert isinstance(layer, nn.Conv2d)
        return PointwiseProduct(layer)
    convolutions = {name: each for name, each in layer.named_children() if is_product(each)}
    if not convolutions:
        return None
    share = {id(parameter): parameter for parameter in layer.parameters()}
    copied = copy.deepcopy(layer, share)
    for name, each in convolutions.items():
        assert isinstance(each, nn.Conv2d)
        replace_module(copied, name, PointwiseProduct(each))
    return copied


def _factorings(layer: FactoredLayer) -> dict[str, nn.Module]:
    ranks = form(layer)
    rank_in, rank_out, separable = ranks
    forms: dict[str, nn.Module] = {form_name(ranks): layer}
    if isinstance(layer.rotate_in, Layer) and layer.rotate_in.bias is not None:
        return forms  # a shift before the padding: nothing can be absorbed without changing the border
    memory = memory_format([layer.core.weight])
    if separable:
        forms[DENSE] = dense_form(layer).to(memory_format=memory)  # type: ignore[call-overload]
        return forms
    rotate_in = None if rank_in is None else layer.rotate_in.get_parameter("weight").double().flatten(1)
    rotate_out = None if rank_out is None else layer.rotate_out.get_parameter("weight").double().flatten(1)
    factors = rotate_out, layer.core.weight.double(), rotate_in
    for ranks in (Ranks(rank_in, None), Ranks(None, rank_out), DENSE_RANKS):
        if form_name(ranks) not in forms:
            built = build_layer(outline(layer, "meta"), ranks, factors, layer.bias)
            forms[form_name(ranks)] = built.to(memory_format=memory).train(layer.training)  # type: ignore[call-overload]
    return forms


@torch.no_grad()
def choose_forms(
    model: nn.Module, run: Callable[[], object], rate_of: Callable[[str], float], time: Stopwatch
) -> dict[str, Choice]:
    """The form in which each layer of ``model`` is fastest on the input that reaches it in ``run``; none is changed.

    The layers are the factored and branched ones and the 1x1 convolutions, where they are not computed with in other
    ways and have no hooks. Of the batch a layer sees the share ``rate_of`` its name, at least one image. Layers that do
    not run are left alone.
    """
    choices: dict[str, Choice] = {}

    def hook(name: str, layer: nn.Module) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def choose(_: nn.Module, args: tuple[Any, ...]) -> None:
            if name in choices:
                return
            x = args[0][: max(1, round(rate_of(name) * len(args[0])))]
            forms = forms_of(layer)
            if not has_channels_last(x):
                forms = {each: module for each, module in forms.items() if not each.endswith(PRODUCTS)}
            if isinstance(layer, nn.Conv2d) and len(forms) == 1:
                return
            # Not called as modules: that would come back to this hook.
            latencies = time({each: partial(module.forward, x) for each, module in forms.items()})
            choices[name] = Choice.fastest(latencies, before=next(iter(forms)))
            shown.update()

        return choose

    layers = _layers_with_forms(model)
    with ExitStack() as stack, bar(description="timing layers", total=len(layers), unit="layer") as shown:
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(hook(name, layer)))
        run()
    return choices


def _layers_with_forms(model: nn.Module) -> dict[str, nn.Module]:
    """The factored and branched layers and the 1x1 convolutions that may be replaced, by name."""
    layers: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, FactoredLayer | BranchedConv2d):
            inside.update(layer.modules())
            if is_hooked(layer):
                continue
        elif layer in inside or not (is_product(layer) and is_plain_layer(layer)):
            continue
        layers[name] = layer
    return layers


def dense_forms(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """The fastest forms that are dense, of the same choices; layers that have none keep their choice."""
    return {name: choice.among((DENSE, f"{DENSE}{PRODUCTS}")) for name, choice in choices.items()}


def recomposed(model: nn.Module) -> dict[str, str]:
    """The name of the dense form for each factored or branched layer that has one, and no hooks."""
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, FactoredLayer | BranchedConv2d) and not is_hooked(layer)
    }
    return {name: DENSE for name, layer in layers.items() if DENSE in forms_of(layer)}


def apply_forms(model: nn.Module, forms: Mapping[str, str]) -> None:
    """Give the layers of ``model`` these forms, in place. KeyError if a layer has no such form."""
    for name, chosen in forms.items():
        layer = model.get_submodule(name)
        replace_everywhere(model, layer, forms_of(layer)[chosen])
