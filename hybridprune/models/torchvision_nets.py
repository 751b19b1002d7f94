"""torchvision's classifiers by name, untrained and with our number of classes; they have no gates."""

from __future__ import annotations

import difflib
from typing import Any

from torch import nn

from hybridprune.errors import UserError

_NO_AUXILIARY_HEADS: dict[str, Any] = {"aux_logits": False, "init_weights": True}
_OPTIONS = {"googlenet": _NO_AUXILIARY_HEADS, "inception_v3": _NO_AUXILIARY_HEADS}


def torchvision_classifiers() -> list[str]:
    """The names of all classifiers of the installed torchvision."""
    # Inside of the functions: torchvision is slow to import, and few networks are from there.
    from torchvision import models

    return models.list_models(module=models)


def build_torchvision(name: str, classes: int) -> nn.Module:
    """A freshly initialised classifier; nothing is downloaded. ``name`` is one of ``torchvision_classifiers()``."""
    from torchvision import models

    return models.get_model(name, weights=None, num_classes=classes, **_OPTIONS.get(name, {}))


def check_torchvision_name(name: str) -> None:
    """Raise UserError, with the closest names, if torchvision has no classifier called ``name``."""
    known = torchvision_classifiers()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(known)}"
        raise UserError(f"--network torchvision:{name}: torchvision has no such classifier; {remedy}")
