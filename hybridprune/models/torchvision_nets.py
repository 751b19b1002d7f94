"""torchvision's classifiers by name, untrained and with our number of classes; they have no gates."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hybridprune.errors import UserError

_NO_AUXILIARY_HEADS: dict[str, Any] = {"aux_logits": False, "init_weights": True}
_OPTIONS = {"googlenet": _NO_AUXILIARY_HEADS, "inception_v3": _NO_AUXILIARY_HEADS}
_AUXILIARY_HEAD = re.compile(r"(aux1|aux2|AuxLogits)\.")
# DenseNets were published when names of modules could hold dots; torchvision's own loader renames them as well.
_DOTTED = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def torchvision_classifiers() -> list[str]:
    """The names of all classifiers of the installed torchvision."""
    # Inside of the functions: torchvision is slow to import, and few networks are from there.
    from torchvision import models

    return models.list_models(module=models)


def build_torchvision(name: str, classes: int) -> nn.Module:
    """A freshly initialised classifier; nothing is downloaded. ``name`` is one of ``torchvision_classifiers()``."""
    from torchvision import models

    return models.get_model(name, weights=None, num_classes=classes, **_OPTIONS.get(name, {}))


def published_tensors(name: str, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint of classifier ``name`` under the names that it has here, and the auxiliary heads left out of it."""
    renamed = {_DOTTED.sub(r"\1\2", key): value for key, value in tensors.items()}
    heads = {key: found[1] for key in renamed if name in _OPTIONS and (found := _AUXILIARY_HEAD.match(key))}
    return {key: value for key, value in renamed.items() if key not in heads}, sorted(set(heads.values()))


def check_torchvision_name(name: str) -> None:
    """Raise UserError, with the closest names, if torchvision has no classifier called ``name``."""
    known = torchvision_classifiers()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(known)}"
        raise UserError(f"--network torchvision:{name}: torchvision has no such classifier; {remedy}")
