"""Studying a model from inside: read and change every quantity of its computation by name, and check the results.

The names below are imported when they are first used: counting what a model costs does not import torch.

The files, each of which imports only from those above it::

    checks        an identity that a result satisfies, and by how much
    taps          the points of a model that can be read and changed: one table
    positions     which tokens of a sequence are meant
    accounting    parameters, FLOPs and memory, a module a row, from the configuration alone
    recording     what a trace holds, and how large it will be
    results       the result of a view of `minigpt inspect`, as JSON or as arrays
    edits         what to change inside: ablate, patch, knock out
    tracing       reading and changing a model from outside, by hooks that are always removed again
    lens          what the model would predict after each half of a block; the loss of each token
    attribution   which parts add up to a logit, and what remains
    embeddings    neighbours, principal components, norms of the stream
    heads         what each attention head looks at, in scores
    sweeps        ablate or patch each part in turn, and measure
    decoders      what a decoder considered, step by step
    plots         results as pictures
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
