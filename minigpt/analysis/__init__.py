"""Studying a model from inside: every quantity by name, read and changed from outside, with its own proof.

The names below are imported when they are first used: counting what a model costs does not import torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minigpt.analysis.accounting import model_size as model_size
    from minigpt.analysis.attribution import attribute as attribute
    from minigpt.analysis.edits import ablate as ablate
    from minigpt.analysis.edits import knockout as knockout
    from minigpt.analysis.edits import patch as patch
    from minigpt.analysis.embeddings import neighbours as neighbours
    from minigpt.analysis.embeddings import pca as pca
    from minigpt.analysis.embeddings import position_similarity as position_similarity
    from minigpt.analysis.embeddings import residual_norms as residual_norms
    from minigpt.analysis.heads import head_scores as head_scores
    from minigpt.analysis.lens import logit_lens as logit_lens
    from minigpt.analysis.lens import token_losses as token_losses
    from minigpt.analysis.recording import plan as plan
    from minigpt.analysis.sweeps import ablation_sweep as ablation_sweep
    from minigpt.analysis.sweeps import patching_sweep as patching_sweep
    from minigpt.analysis.sweeps import total_effects as total_effects
    from minigpt.analysis.taps import points as points
    from minigpt.analysis.tracing import edit as edit
    from minigpt.analysis.tracing import trace as trace

_HOMES = {
    "ablate": "edits",
    "ablation_sweep": "sweeps",
    "attribute": "attribution",
    "edit": "tracing",
    "head_scores": "heads",
    "knockout": "edits",
    "logit_lens": "lens",
    "model_size": "accounting",
    "neighbours": "embeddings",
    "patch": "edits",
    "patching_sweep": "sweeps",
    "pca": "embeddings",
    "plan": "recording",
    "points": "taps",
    "position_similarity": "embeddings",
    "residual_norms": "embeddings",
    "token_losses": "lens",
    "total_effects": "sweeps",
    "trace": "tracing",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        what = f"module 'minigpt.analysis' has no attribute {name!r}"
        raise AttributeError(what, name=name, obj=sys.modules[__name__])
    return getattr(import_module(f"minigpt.analysis.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """What is public, and nothing of how it is found."""
    return sorted(_HOMES)
