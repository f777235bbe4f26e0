"""What the model would predict at every depth, and the loss of each token of a text.

`logit_lens` reads the residual stream between the sublayers with the model's own last norm and output head
(nostalgebraist, 2020); the norm computes its mean and variance anew at every point.
Letters as in `model.py`, and P for the points of a lens.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

import minigpt.analysis.taps as taps
from minigpt.analysis.checks import Check, measured
from minigpt.analysis.recording import Trace, allowed
from minigpt.config import GPTConfig, VocabSize
from minigpt.decoding.sampling import check_prompts
from minigpt.errors import InputError
from minigpt.evaluation.loss import next_log_probs, perplexity
from minigpt.fields import check_most, check_place, checked
from minigpt.model import GPT
from minigpt.parameters import num_with_text, with_text
from minigpt.system import notebook, terminal
from minigpt.system.terminal import Brief

# --- the logit lens


class Lens(Brief):
    """The logits that several points of the residual stream give, each read as if it were the last.

    Attributes:
        points: their names, P of them.
        end: the last state of the stream, which the model's own logits are read from.
        positions: the absolute positions, T of them.
        logits: (P, B, T, V).
        final: the model's own logits (B, T, V).
    """

    points: list[str]
    end: str
    positions: list[int]
    logits: Tensor
    final: Tensor

    def probs(self) -> Tensor:
        """The probabilities (P, B, T, V); they take as much memory as the logits."""
        return _log_probs(self.logits).exp()

    @checked
    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest tokens: int64 ids and their probabilities, both (P, B, T, k), the likeliest first.

        Raises:
            InputError: if the vocabulary has no k tokens.
        """
        check_most(k, V := self.logits.size(-1), f"likeliest of {V} tokens")
        ids = self.logits.topk(k).indices
        tops = [_log_probs(logits).gather(-1, at).exp() for logits, at in zip(self.logits, ids, strict=True)]
        return ids, torch.stack(tops)

    @checked
    def rank_of(self, token_id: int) -> Tensor:
        """How many tokens are likelier than this one, at every point and position: int64 (P, B, T), 0 for the best.

        Raises:
            InputError: if the vocabulary has no such token.
        """
        check_place(token_id, self.logits.size(-1), "token")
        return (self.logits > self.logits[..., token_id, None]).sum(-1)  # (P, B, T, V) -> (P, B, T)

    def kl_to_final(self) -> Tensor:
        """KL(the model's own distribution || the point's) in nats, (P, B, T): how far the point is from the answer."""
        final = _log_probs(self.final)
        return torch.stack([(final.exp() * (final - _log_probs(logits))).sum(-1) for logits in self.logits])

    def _repr_html_(self) -> str:
        ids, probs = (best[:, 0, :, 0].tolist() for best in self.top(1))  # (P, B, T, 1) -> (P, T), of the first row
        rows = zip(ids, probs, strict=True)
        cells = [[(f"{i} ({p:.2f})", p) for i, p in zip(*row, strict=True)] for row in rows]
        caption = "the likeliest next token, and its probability, by depth and position"
        return notebook.shown(
            "Logit lens", notebook.marked(self.points, [f"position {n}" for n in self.positions], cells, caption)
        )

    @property
    def checks(self) -> list[Check]:
        """Probabilities sum to 1; the end of the stream, if it is among the points, gives the model's own logits."""
        sums, kl = torch.stack([_log_probs(logits).exp().sum(-1) for logits in self.logits]), self.kl_to_final()
        checks = [
            measured("the probabilities of a point sum to 1", _largest(sums - 1), 1e-5),
            measured("no KL divergence is negative", _largest(kl.clamp(max=0)), 1e-5),
        ]
        if self.points[-1] == self.end:
            dtypes, size = (self.logits.dtype, self.final.dtype), _largest(self.final)
            apart = _largest(self.logits[-1] - self.final)
            checks.append(measured("the last point = the model's logits", apart, allowed(1e-4, size, *dtypes)))
            checks.append(measured("KL of the last point = 0", _largest(kl[-1]), allowed(1e-5, size, *dtypes)))
        return checks


@checked
@torch.no_grad()
def logit_lens(t: Trace, points: str | Sequence[str] | None = None, vocab_size: VocabSize | None = None) -> Lens:
    """Read the residual stream at several depths with the model's last norm and its output head.

    Args:
        t: a trace that has recorded the points, and the logits. The weights are those that the model has now.
        points: states of the residual stream, by name or glob; by default the embeddings, and the stream after every
            sublayer. The result has them in the order of the forward pass. All V logits of all points are kept: 5 MB a
            token for GPT-2 small.
        vocab_size: the tokenizer's; see `parameters.with_text`.

    Raises:
        PointError: if a point does not exist, or was not recorded.
        InputError: if a point is no state of the stream, or they were recorded at different positions.
    """
    names = stream_points(t.config) if points is None else taps.resolve(points, t.config)
    for name in names:
        if ".resid_" not in name:
            raise InputError(
                f"{name} is no state of the residual stream, and the output head cannot read it",
                "choose among *.resid_pre, *.resid_mid and *.resid_post",
            )
    if not names:
        raise InputError("the lens has no point to read", 'name some: "*.resid_post", or leave points out')
    positions = t.shared_positions([*names, "logits"])
    # One point after the other, in the shapes of the model's pass, so that the last equals the model's to the bit.
    rows = [t.model.lm_head(t.model.ln_f(t[name].to(t.model.wte.weight))).to(t[name].device) for name in names]
    end = stream_points(t.config)[-1]
    return Lens(names, end, positions, with_text(torch.stack(rows), vocab_size), with_text(t["logits"], vocab_size))


def stream_points(config: GPTConfig) -> list[str]:
    """The states of the residual stream: the embeddings, and after every sublayer."""
    after = [f"blocks.{layer}.{name}" for layer in range(config.n_layer) for name in ("resid_mid", "resid_post")]
    return ["blocks.0.resid_pre", *after]


# --- the loss of every token


class TokenLosses(Brief):
    """The loss of each token of a text. The first token is not predicted, and has no loss.

    Attributes:
        ids: the text, T tokens.
        log_probs: (T - 1, V): row t - 1 is the distribution over token t.
    """

    ids: list[int]
    log_probs: Tensor

    @property
    def losses(self) -> Tensor:
        """-log p(ids[t] | ids[:t]) in nats for t >= 1: (T - 1,)."""
        following = torch.tensor(self.ids[1:], device=self.log_probs.device)
        return -self.log_probs.gather(-1, following[:, None])[:, 0]

    @property
    def cumulative(self) -> Tensor:
        """The losses' running sum (T - 1,); the last is minus the log-probability of the sequence."""
        return self.losses.cumsum(0)

    @property
    def entropy(self) -> Tensor:
        """The entropy of each prediction in nats, (T - 1,): the loss that the model expects, from 0 to ln V."""
        return -torch.xlogy(self.log_probs.exp(), self.log_probs.exp()).sum(-1)

    @property
    def mean(self) -> float:
        """Mean loss in nats a token."""
        return float(self.losses.double().mean())

    @property
    def perplexity(self) -> float:
        """exp(mean): as if the model chose among so many equally likely tokens."""
        return perplexity(self.mean)

    @checked
    def bits_per_byte(self, num_bytes: int) -> float:
        """All losses in bits, spread over the bytes that the predicted tokens stand for.

        Raises:
            InputError: if there are no bytes.
        """
        if num_bytes < 1:
            raise InputError(f"{num_bytes} bytes cannot share a loss", "give the number of bytes of the text")
        return float(self.losses.double().sum()) / math.log(2) / num_bytes

    @checked
    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k tokens that the model found likeliest: int64 ids and their probabilities, both (T - 1, k).

        Raises:
            InputError: if the vocabulary has no k tokens.
        """
        check_most(k, V := self.log_probs.size(-1), f"likeliest of {V} tokens")
        best = self.log_probs.topk(k)
        return best.indices, best.values.exp()

    def _repr_html_(self) -> str:
        names = [f"{position}: token {token}" for position, token in enumerate(self.ids)][1:]
        mean = f"mean {self.mean:.4f} nats a token, perplexity {terminal.number(self.perplexity, '.3f')}"
        return notebook.shown(
            "Loss of each token", notebook.bars(names, self.losses.tolist(), what="nats"), notebook.note(mean)
        )

    @property
    def checks(self) -> list[Check]:
        """The mean is torch's cross-entropy; probabilities sum to 1; entropies lie between 0 and ln V."""
        following = torch.tensor(self.ids[1:], device=self.log_probs.device)
        expected = float(F.cross_entropy(self.log_probs, following))
        highest = math.log(self.log_probs.size(-1))
        return [
            measured("mean = cross-entropy", abs(self.mean - expected), 1e-4),
            measured("the probabilities of a token sum to 1", _largest(self.log_probs.exp().sum(-1) - 1), 1e-5),
            measured("0 <= entropy <= ln V", _largest(self.entropy - self.entropy.clamp(0, highest)), 1e-4),
        ]


@checked
@torch.no_grad()
def token_losses(model: GPT, ids: Sequence[int], vocab_size: VocabSize | None = None) -> TokenLosses:
    """The loss of every token of a text except the first.

    Args:
        model: used in evaluation mode.
        ids: the text, from 2 to `block_size` + 1 tokens.
        vocab_size: the tokenizer's; see `parameters.with_text`.

    Raises:
        InputError: if the text is shorter or longer, or holds an id outside the vocabulary.
    """
    (row,) = check_prompts([ids], num_with_text(model, vocab_size))
    if len(row) < 2:
        raise InputError("1 token leaves nothing to predict", "give a text of at least 2 tokens")
    # On the CPU, because tables and pictures follow, and NumPy reads no other device.
    return TokenLosses(row, next_log_probs(model, row[:-1], vocab_size).cpu())


def _log_probs(logits: Tensor) -> Tensor:
    """Log-softmax in float32 or float64, of the same shape."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _largest(x: Tensor) -> float:
    """The largest absolute value."""
    return float(x.abs().max())
