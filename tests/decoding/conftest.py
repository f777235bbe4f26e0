"""The reference library as an oracle: a random tiny GPT-2 of its own, and the same weights in a GPT of ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.decoding.generate import generate
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.kv_cache import KVCache
from minigpt.model import GPT

PAD = 49

# What the reference library calls our options.
THEIR_NAMES = {"banned_sequences": "bad_words_ids", "force_eos": "forced_eos_token_id"}
NOT_THEIRS = ("strategy", "seed", "eos_token_id")
SORTS_DRAWS = tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24)


@dataclass(frozen=True)
class Pair:
    """A model of the reference library, and ours with the same weights."""

    theirs: Any
    ours: GPT

    def generate(
        self, prompts: Sequence[Sequence[int]], eos: Sequence[int] = (), seed: int = 0, **options: Any
    ) -> tuple[list[list[int]], list[float] | None]:
        """Its new tokens of each sequence, up to the end of sequence, and the scores of its beams.

        Nothing is left to its defaults: they hide a top_k of 50, and a pad id that is guessed.
        """
        width = max(map(len, prompts))
        pad = min(PAD, self.ours.config.vocab_size - 1)
        options = {"top_k": 0, "do_sample": False, "num_beams": 1, "pad_token_id": pad} | options
        torch.manual_seed(seed)
        result = self.theirs.generate(
            torch.tensor([[PAD] * (width - len(ids)) + list(ids) for ids in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
            eos_token_id=list(eos) or None,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        new = [row[width:] for row in result.sequences.tolist()]
        ends = [min((row.index(e) + 1 for e in eos if e in row), default=len(row)) for row in new]
        scores = result.sequences_scores.tolist() if options["num_beams"] > 1 else None
        return [row[:end] for row, end in zip(new, ends, strict=True)], scores

    def check(
        self, prompts: Sequence[Sequence[int]], draft: PromptLookup | DraftModel | None = None, **options: Any
    ) -> list[list[int]]:
        """Our options give their ids, and their scores of beams within 1e-4; returned are the new tokens."""
        theirs = {THEIR_NAMES.get(name, name): value for name, value in options.items() if name not in NOT_THEIRS}
        eos = options.get("eos_token_id", ())
        if "force_eos" in options:
            theirs["forced_eos_token_id"] = list(eos)
        theirs["do_sample"] = options.get("strategy", "sample") == "sample"
        if theirs["do_sample"] and options.get("num_beams", 1) > 1 and SORTS_DRAWS:
            pytest.skip("from 5.24 on, transformers sorts what it has drawn for sampled beams")
        expected, scores = self.generate(prompts, eos, options.get("seed", 0), **theirs)
        result = generate(self.ours, prompts, draft=draft, **options)
        lengths = [len(prompt) for prompt in prompts for _ in range(options.get("num_return_sequences", 1))]
        assert [ids[n:] for ids, n in zip(result.sequences, lengths, strict=True)] == expected
        assert scores is None or result.scores == pytest.approx(scores, abs=1e-4)
        return expected


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., Pair]:
    """(vocab_size, seed, ...) -> a pair of models with the same random weights, far from uniform."""
    transformers = pytest.importorskip("transformers")

    def make(vocab_size: int = 50, seed: int = 5, n_positions: int = 64, n_layer: int = 2) -> Pair:
        config = transformers.GPT2Config(
            vocab_size=vocab_size,
            n_layer=n_layer,
            n_embd=32,
            n_head=2,
            n_positions=n_positions,
            initializer_range=0.2,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            attn_implementation="eager",
        )
        torch.manual_seed(seed)
        theirs = transformers.GPT2LMHeadModel(config).eval()
        ours = GPT(GPTConfig(vocab_size=vocab_size, block_size=n_positions, n_layer=n_layer, n_head=2, n_embd=32))
        weights = {}
        for name, weight in theirs.state_dict().items():
            # Its linear layers inside the blocks keep their matrices the other way round.
            transposed = ".h." in name and name.endswith(".weight") and weight.dim() == 2
            weights[name.removeprefix("transformer.")] = weight.T if transposed else weight
        ours.load_state_dict(weights)
        return Pair(theirs, ours.eval())

    return make


@pytest.fixture(scope="session")
def pair(make_pair: Callable[..., Pair]) -> Pair:
    """The fixture of the golden numbers; they mean something only while its random weights are these."""
    pair = make_pair()
    with torch.no_grad():
        logits = pair.ours(torch.tensor([[1, 2, 3]]))[0, -1]
    torch.testing.assert_close(pair.ours.wte.weight.sum().item(), -3.2005, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[:5], torch.tensor([-1.0262, 0.1978, 1.3706, 1.3699, 0.0309]), atol=1e-4, rtol=0)
    assert logits.argmax() == 32
    return pair


class TableModel(GPT):
    """A model whose next-token probabilities are a table, indexed by the last token: (V, V), rows sum to 1."""

    def __init__(self, table: Sequence[Sequence[float]], block_size: int = 64) -> None:
        V = len(table)
        super().__init__(GPTConfig(vocab_size=V, n_embd=V, n_head=1, n_layer=1, block_size=block_size))
        self.lm_head.weight = torch.nn.Parameter(torch.tensor(table).log().T)  # logits = weight @ one-hot

    def trunk(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        if cache is not None:
            cache.positions(idx.size(1))  # complains when the cache is full
            cache.advance(idx.size(1))
        return torch.nn.functional.one_hot(idx, self.config.vocab_size).float()


@pytest.fixture
def table_model() -> type[TableModel]:
    return TableModel


@pytest.fixture
def log_prob() -> Callable[[GPT, Sequence[int], int], float]:
    """(model, ids, n) -> log-probability of the last n ids, from one plain forward pass in float64."""

    def compute(model: GPT, ids: Sequence[int], num_new: int) -> float:
        with torch.no_grad():
            log_probs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        return float(sum(log_probs[at - 1, ids[at]] for at in range(len(ids) - num_new, len(ids))))

    return compute
