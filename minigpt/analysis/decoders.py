"""What a decoder considered: what each sampling option cuts off, every step's candidates, the tree of a beam search.

Letters as in `model.py`, and N for the stages of a cut.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from minigpt.analysis.checks import Check, measured
from minigpt.decoding.batch import Choice
from minigpt.decoding.beam_search import BeamCandidate
from minigpt.decoding.filters import apply_filters
from minigpt.decoding.generate import Step, generate
from minigpt.decoding.options import DecodingOptions, Options
from minigpt.decoding.request import TokenBytes
from minigpt.errors import InputError, named
from minigpt.evaluation.loss import token_log_probs
from minigpt.fields import check_most, checked
from minigpt.model import GPT
from minigpt.system import notebook
from minigpt.system.terminal import Brief

# --- where sampling cuts

CUTS = ("temperature", "top_k", "top_p", "min_p")  # in the order of `apply_filters`


class Cuts(Brief):
    """One distribution before and after each option of sampling, in the order in which they act.

    Attributes:
        stages: N - 1 pairs (option, value); stage 0 is the model's own distribution and has no pair.
        probabilities: of the tokens at each stage, (N, V).
    """

    stages: list[tuple[str, float]]
    probabilities: Tensor

    @property
    def names(self) -> list[str]:
        """What was done at each of the N stages."""
        return ["the model", *(f"{name.replace('_', '-')} {value:g}" for name, value in self.stages)]

    @property
    def kept(self) -> list[int]:
        """How many tokens are left at each stage."""
        return (self.probabilities > 0).sum(-1).tolist()

    @property
    def entropy(self) -> list[float]:
        """In nats, at each stage."""
        return torch.special.entr(self.probabilities.double()).sum(-1).tolist()

    @checked
    def top(self, k: int) -> list[int]:
        """The k tokens that the model finds likeliest, the best first.

        Raises:
            InputError: if the vocabulary has no k tokens.
        """
        V = self.probabilities.size(-1)
        check_most(k, V, f"likeliest of {V} tokens")
        return self.probabilities[0].topk(k).indices.tolist()

    def _repr_html_(self) -> str:
        ids = self.top(min(10, self.probabilities.size(-1)))
        names = [f"{name} ({kept:,} left)" for name, kept in zip(self.names, self.kept, strict=True)]
        columns = [f"token {token_id}" for token_id in ids]
        title = "What each option of sampling leaves"
        return notebook.shown(title, notebook.heat_map(names, columns, self.probabilities[:, ids]))

    @property
    def checks(self) -> list[Check]:
        """Each stage sums to 1, and each option has done what its definition says, worked out again in float64."""
        sums = self.probabilities.double().sum(-1)
        checks = [measured("the probabilities of a stage sum to 1", float((sums - 1).abs().max()), 1e-5)]
        for (name, value), (before, after) in zip(
            self.stages, itertools.pairwise(self.probabilities.double()), strict=True
        ):
            left, cut = before[after > 0], before[after == 0]
            if name == "temperature":
                seen = before > torch.finfo(torch.float32).tiny  # what has become 0 can have a power that is not
                powers, shares = before[seen].log().div(value).softmax(-1), after[seen] / after[seen].sum()
                apart = float((powers - shares).abs().max())
                checks.append(measured("temperature: p ** (1 / T), normalised", apart, 1e-5))
            elif name == "top_k":
                k = min(value or len(before), int((before > 0).sum()))  # 0 is off
                better = int((before > left.min()).sum())
                checks.append(measured("top-k: fewer than k are better than the last", max(0, better - k + 1), 0))
                checks.append(measured("top-k: no fewer than k are left, if there were k", max(0, k - len(left)), 0))
            elif name == "top_p":
                lacking, surplus = value - float(left.sum()), float(left.sum() - left.min()) - value
                checks.append(measured("top-p: what is left reaches p", max(0.0, lacking), 1e-5))
                checks.append(measured("top-p: without its last token it would not", max(0.0, surplus), 1e-5))
            else:
                least = value * float(before.max())
                lacking, surplus = least - float(left.min()), max([0.0, *cut.tolist()]) - least
                checks.append(measured("min-p: the last token has its share of the best", max(0.0, lacking), 1e-6))
                checks.append(measured("min-p: what was cut has not", max(0.0, surplus), 1e-6))
        return checks


def sampling_cuts(
    logits: Tensor,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Cuts:
    """What each option leaves of a distribution; `generate` draws from the last stage, if it has that temperature.

    `logits` (V,) are those of the next token. The options are those of `DecodingOptions`, but the temperature is above
    0; one that is not given makes no stage, not even the temperature, of which `generate` has one in any case.

    Raises:
        InputError: if an option cannot be used.
    """
    if temperature == 0:
        raise InputError(
            f"{named('temperature', 0)} draws nothing: the best token is taken", "choose a temperature above 0"
        )
    given = zip(CUTS, (temperature, top_k, top_p, min_p), strict=True)
    stages = [(name, value) for name, value in given if value is not None]
    scores = logits.float()[None]  # (V,) -> (1, V)
    chosen: list[dict[str, Any]] = [{"temperature": 1.0} | dict(stages[:n]) for n in range(len(stages) + 1)]
    rows = [apply_filters(scores, [[]], DecodingOptions(**values), [0]) for values in chosen]
    return Cuts(stages, torch.cat(rows).softmax(-1))


# --- step by step


@dataclass(frozen=True)
class Written:
    """A continuation, and the candidates for each of its tokens.

    Attributes:
        ids: prompt and continuation.
        choices: one for each new token; the sum of their log-probabilities is `score`.
        score: the log-probability of the continuation.
        checks: identities, observed along the way.
    """

    ids: list[int]
    choices: list[Choice]
    score: float
    checks: tuple[Check, ...]

    def _repr_html_(self) -> str:
        rows = [
            (step, choice.id, choice.log_prob, "  ".join(f"{c.id} ({c.probability:.3f})" for c in choice.candidates))
            for step, choice in enumerate(self.choices)
        ]
        columns = ["step", "token", "log-probability", "candidates, and their probabilities"]
        return notebook.shown(f"Written: log-probability {self.score:.4f}", notebook.table(columns, rows))


@checked
def write_steps(
    model: GPT, prompt: Sequence[int], tokenizer: TokenBytes, num_candidates: int, **options: Unpack[Options]
) -> Written:
    """Continue a prompt of ids by greedy decoding or sampling, and keep `num_candidates` tokens of each step.

    The options are fields of `DecodingOptions`, for one sequence.

    Raises:
        InputError: where `generate` raises one, and if max_new_tokens is 0.
    """
    chosen = DecodingOptions(**options)
    _check_length(chosen)
    if chosen.uses_beams or chosen.num_return_sequences != 1:
        raise InputError("only one sequence is written here, without beams", "leave them out, or take beam_tree")
    steps: list[Step] = []
    out = generate(model, [prompt], tokenizer=tokenizer, on_step=steps.append, num_candidates=num_candidates, **options)
    choices = [choice for step in steps for choice in step.choices]
    (ids,), (score,) = out.sequences, out.scores
    summed = math.fsum(choice.log_prob for choice in choices)
    checks = [measured("the log-probabilities of the steps sum to the score", abs(summed - score), 1e-4)]
    checks += _in_one_pass(model, prompt, ids, tokenizer, score)
    return Written(ids, choices, score, tuple(checks))


# --- beams


@dataclass(frozen=True)
class Node:
    """A token that a beam search considered.

    Attributes:
        step: from 0 on.
        parent: the number of the node that it continues; None at the first step.
        candidate: what the search knew of it.
        best: whether it belongs to the result.
    """

    step: int
    parent: int | None
    candidate: BeamCandidate
    best: bool


@dataclass(frozen=True)
class BeamTree:
    """Everything that a beam search considered for one prompt.

    Attributes:
        nodes: step after step, in each the best first.
        ids: the result's, prompt included.
        score: the result's.
        checks: identities, observed along the way.
    """

    nodes: list[Node]
    ids: list[int]
    score: float
    checks: tuple[Check, ...]

    def _repr_html_(self) -> str:
        rows = [
            ("best" if node.best else "", node.step, " ".join(map(str, self.path(number))), node.candidate.total)
            for number, node in enumerate(self.nodes)
        ]
        columns = ["", "step", "new tokens", "log-probability"]
        return notebook.shown(f"Beam search: best score {self.score:.4f}", notebook.table(columns, rows))

    def path(self, number: int) -> list[int]:
        """The new tokens of a node's sequence, its own the last."""
        at: int | None = number
        tokens: list[int] = []
        while at is not None:
            tokens.append(self.nodes[at].candidate.id)
            at = self.nodes[at].parent
        return tokens[::-1]


def beam_tree(model: GPT, prompt: Sequence[int], tokenizer: TokenBytes, **options: Any) -> BeamTree:
    """Search for the best continuation of a prompt of ids, and keep what was considered.

    The options are fields of `DecodingOptions`; the strategy is beam search.

    Raises:
        InputError: where `generate` raises one, and if max_new_tokens is 0.
    """
    chosen = DecodingOptions(strategy="beam", **options)
    _check_length(chosen)
    steps: list[Step] = []
    out = generate(model, [prompt], tokenizer=tokenizer, on_step=steps.append, strategy="beam", **options)
    (ids, *_), (score, *_) = out.sequences, out.scores
    nodes = _nodes([step.beams for step in steps], ids[len(prompt) :])
    parents = [(node, nodes[node.parent]) for node in nodes if node.parent is not None]
    gains = [node.candidate.total - parent.candidate.total for node, parent in parents]
    summed = max((node for node in nodes if node.best), key=lambda node: node.step).candidate.total
    expected = summed / (len(ids) - len(prompt)) ** chosen.length_penalty
    checks = [
        measured("no branch is likelier than what it continues", max([0.0, *gains]), 1e-4),
        measured("score = sum of log-probabilities / length ** penalty", abs(score - expected), 1e-4),
    ]
    checks += _in_one_pass(model, prompt, ids, tokenizer, summed)
    return BeamTree(nodes, ids, score, tuple(checks))


def _in_one_pass(
    model: GPT, prompt: Sequence[int], ids: Sequence[int], tokenizer: TokenBytes, score: float
) -> list[Check]:
    """The log-probability of what follows the prompt, computed anew, if the model has seen all of it."""
    if len(ids) > model.config.block_size:
        return []
    again = math.fsum(token_log_probs(model, ids, tokenizer.vocab_size)[len(prompt) - 1 :])
    return [measured("with the cache = in one pass without it", abs(again - score), 1e-3)]


def _check_length(options: DecodingOptions) -> None:
    if not options.max_new_tokens:
        raise InputError(f"{named('max_new_tokens', 0)} leaves nothing to consider", "choose at least 1")


def _nodes(steps: Sequence[Sequence[BeamCandidate]], result: Sequence[int]) -> list[Node]:
    """The tree: `place` of one step is `parent` of the next."""
    nodes: list[Node] = []
    beams: dict[int, int | None] = {0: None}  # place -> the node that stands there
    on_path: int | None = None  # the last node of the result so far
    for step, candidates in enumerate(steps):
        following: dict[int, int | None] = {}
        continued = on_path
        for candidate in candidates:
            parent = beams[candidate.parent]
            best = step < len(result) and parent == continued and candidate.id == result[step]
            if best:
                on_path = len(nodes)
            if candidate.place is not None:
                following[candidate.place] = len(nodes)
            nodes.append(Node(step, parent, candidate, best))
        beams = following
    return nodes
