"""The forms of a factored layer or a 1x1 convolution, which all compute the same, and the fastest by the clock."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.deployment.choice import Choice
from hybridprune.deployment.fold import is_hooked, is_plain_layer, replace_everywhere
from hybridprune.deployment.pointwise import PointwiseProduct, has_channels_last, is_product
from hybridprune.measure.latency import Stopwatch
from hybridprune.models.factored import FactoredConv2d, FactoredLayer, factored, fill, form, form_name
from hybridprune.models.replace import replace_module
from hybridprune.progress_bar import bar

Layer = nn.Conv2d | nn.Linear
DENSE = form_name((None, None))
PRODUCTS = " with products"
"""How the names of forms end whose 1x1 convolutions are matrix products."""


@torch.no_grad()
def forms_of(layer: nn.Module) -> dict[str, nn.Module]:
    """Every form that a factored layer or a 1x1 convolution can take without loss, its own one (itself) first.

    A rotation that is left out is multiplied into the core, in double precision. Then the same forms once more, those
    that have 1x1 convolutions, with matrix products in their place.
    """
    assert isinstance(layer, FactoredLayer) or is_product(layer), type(layer)
    forms = _factorings(layer) if isinstance(layer, FactoredLayer) else {DENSE: layer}
    products = {f"{name}{PRODUCTS}": _with_products(each) for name, each in forms.items()}
    return forms | {name: each for name, each in products.items() if each is not None}


def _with_products(layer: nn.Module) -> nn.Module | None:
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
    rank_in, rank_out = form(layer)
    forms: dict[str, nn.Module] = {form_name((rank_in, rank_out)): layer}
    if isinstance(layer.rotate_in, Layer) and layer.rotate_in.bias is not None:
        return forms  # a shift before the padding: nothing can be absorbed without changing the border
    core = layer.core.weight.double()
    rotate_in = None if isinstance(layer.rotate_in, nn.Identity) else layer.rotate_in.weight.double().flatten(1)
    rotate_out = None if isinstance(layer.rotate_out, nn.Identity) else layer.rotate_out.weight.double().flatten(1)
    bias = layer.core.bias if isinstance(layer.rotate_out, nn.Identity) else layer.rotate_out.bias
    for keep_in, keep_out in ((True, False), (False, True), (False, False)):
        ranks = (rank_in if keep_in else None, rank_out if keep_out else None)
        name = form_name(ranks)
        if name in forms:
            continue
        merged = core
        if not keep_in and rotate_in is not None:
            merged = torch.einsum("os...,si->oi...", merged, rotate_in)
        if not keep_out and rotate_out is not None:
            merged = torch.einsum("or,ri...->oi...", rotate_out, merged)
        forms[name] = _layer(
            layer, ranks, merged, rotate_in if keep_in else None, rotate_out if keep_out else None, bias
        )
    return forms


def _layer(
    layer: FactoredLayer,
    ranks: tuple[int | None, int | None],
    core: Tensor,
    rotate_in: Tensor | None,
    rotate_out: Tensor | None,
    bias: Tensor | None,
) -> nn.Module:
    outline = _outline(layer, bias is not None)
    if ranks == (None, None):
        outline.weight.copy_(core)
        if bias is not None:
            assert outline.bias is not None
            outline.bias.copy_(bias)
        built: nn.Module = outline
    else:
        made = factored(outline, *ranks)
        fill(made, rotate_out, core, rotate_in)
        if bias is not None:
            last = made.core if rotate_out is None else made.rotate_out
            assert isinstance(last.bias, Tensor)
            last.bias.copy_(bias)
        built = made
    memory = torch.channels_last if _is_channels_last(layer.core.weight) else torch.contiguous_format
    return built.to(memory_format=memory).train(layer.training)  # type: ignore[call-overload]


def _is_channels_last(weight: Tensor) -> bool:
    return weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def _outline(layer: FactoredLayer, bias: bool) -> Layer:
    """A dense layer of the factored one's geometry, its weights uninitialised."""
    first = layer.core if isinstance(layer.rotate_in, nn.Identity) else layer.rotate_in
    last = layer.core if isinstance(layer.rotate_out, nn.Identity) else layer.rotate_out
    channels_in, channels_out = first.weight.shape[1], last.weight.shape[0]
    options: dict[str, Any] = {"bias": bias, "device": layer.core.weight.device, "dtype": layer.core.weight.dtype}
    if not isinstance(layer, FactoredConv2d):
        return nn.Linear(channels_in, channels_out, **options)
    core = layer.core
    return nn.Conv2d(
        channels_in,
        channels_out,
        (int(core.kernel_size[0]), int(core.kernel_size[1])),
        stride=layer.subsample if layer.subsample != (1, 1) else (int(core.stride[0]), int(core.stride[1])),
        padding=core.padding,  # type: ignore[arg-type]
        dilation=(int(core.dilation[0]), int(core.dilation[1])),
        padding_mode=core.padding_mode,
        **options,
    )


@torch.no_grad()
def choose_forms(
    model: nn.Module, run: Callable[[], object], rate_of: Callable[[str], float], time: Stopwatch
) -> dict[str, Choice]:
    """The form in which each layer of ``model`` is fastest on the input that reaches it in ``run``; none is changed.

    The layers are the factored ones and the 1x1 convolutions, where they are not computed with in other ways and have
    no hooks. Of the batch a layer sees the share ``rate_of`` its name, at least one image. Layers that do not run are
    left alone.
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
    """The factored layers and the 1x1 convolutions that may be replaced, by name."""
    layers: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, FactoredLayer):
            inside.update(layer.children())
            if is_hooked(layer):
                continue
        elif layer in inside or not (is_product(layer) and is_plain_layer(layer)):
            continue
        layers[name] = layer
    return layers


def dense_forms(choices: Mapping[str, Choice]) -> dict[str, Choice]:
    """Of the same choices, the fastest forms that are dense; layers that have none keep their choice."""
    return {name: choice.among((DENSE, f"{DENSE}{PRODUCTS}")) for name, choice in choices.items()}


def recomposed(model: nn.Module) -> dict[str, str]:
    """The name of the dense form for each factored layer that has one, and no hooks."""
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, FactoredLayer) and not is_hooked(layer)
    }
    return {name: DENSE for name, layer in layers.items() if DENSE in forms_of(layer)}


def apply_forms(model: nn.Module, forms: Mapping[str, str]) -> None:
    """Give the layers of ``model`` these forms, in place. KeyError if a layer has no such form."""
    for name, chosen in forms.items():
        layer = model.get_submodule(name)
        replace_everywhere(model, layer, forms_of(layer)[chosen])
