"""What others have published about the heads of GPT-2 small, from its weights.

With HF_HUB_CACHE and TIKTOKEN_CACHE_DIR filled, no network is needed.
"""

import copy

import pytest
import torch

from minigpt.analysis.attribution import attribute
from minigpt.analysis.edits import ablate
from minigpt.analysis.embeddings import neighbours, residual_norms
from minigpt.analysis.heads import attention_checks, head_scores
from minigpt.analysis.lens import logit_lens, token_losses
from minigpt.analysis.sweeps import logit_difference
from minigpt.analysis.tracing import edit, trace
from minigpt.model import GPT

pytestmark = pytest.mark.network

BOS = 50256
# The prompts of TransformerLens's exploratory notebook, which its tests use too: two names, then one of them again; the
# other one is wanted.
FORMS = [
    ("When John and Mary went to the shops,{} gave the bag to", " Mary", " John"),
    ("When Tom and James went to the park,{} gave the ball to", " Tom", " James"),
    ("When Dan and Sid went to the shops,{} gave an apple to", " Dan", " Sid"),
    ("After Martin and Amy went to the park,{} gave a drink to", " Martin", " Amy"),
]


@pytest.fixture(scope="module")
def folded(gpt2) -> GPT:
    """The same function, with the value biases moved into the output biases: the published numbers are taken so.

    The rows of a pattern sum to 1, so what a value bias adds to a head is always the same.
    """
    model = copy.deepcopy(gpt2[0])
    with torch.no_grad():
        for block in model.h:
            bias = block.attn.c_attn.bias[2 * 768 :]
            block.attn.c_proj.bias += block.attn.c_proj.weight @ bias
            bias.zero_()
    return model


def test_the_heads_that_write_the_name(gpt2, folded):
    """TransformerLens's notebook on direct logit attribution."""
    tokenizer = gpt2[1]
    ids = [BOS, *tokenizer.encode("When John and Mary went to the shops, John gave the bag to")]
    assert tokenizer.encode(" Mary") + tokenizer.encode(" John") == [5335, 1757]
    with torch.no_grad(), trace(folded) as t:
        folded(torch.tensor([ids]))
    heads = attribute(t, 5335, 1757, "head")
    values = dict(zip(heads.labels, heads.values.tolist(), strict=True))
    published = {"9.9": 1.9583, "9.6": 1.6281, "10.7": -1.4267, "11.1": -0.9117, "11.10": -0.9042, "10.0": 0.6370,
                 "10.10": 0.4524, "8.10": 0.4264}  # fmt: skip
    assert {head: values[head] for head in published} == pytest.approx(published, abs=1e-3)
    assert [label for label, _ in heads.top() if "mlp" not in label and "embed" not in label][:8] == list(published)
    assert heads.checks[0].ok
    neurons = attribute(t, 5335, 1757, "neuron")
    assert sum(".mlp." in label for label in neurons.labels) == 36_864
    assert neurons.checks[0].ok
    assert all(one.ok for one in [*logit_lens(t).checks, *residual_norms(t).checks, *attention_checks(t, 5)])


def test_without_head_9_9_others_step_in(gpt2, folded):
    """The same project's exploratory notebook: 3.55 becomes 2.99 and not 0.57."""
    tokenizer = gpt2[1]
    prompts, wanted, repeated = [], [], []
    for form, *names in FORMS:
        for name, other in (names, names[::-1]):
            prompts.append([BOS, *tokenizer.encode(form.format(other))])
            wanted += tokenizer.encode(name)
            repeated += tokenizer.encode(other)
    metric, idx = logit_difference(wanted, repeated), torch.tensor(prompts)
    with torch.no_grad():
        assert metric(folded(idx)) == pytest.approx(3.55, abs=0.01)
        with edit(folded, ablate("9.9", at=-1)):
            assert metric(folded(idx)) == pytest.approx(2.99, abs=0.01)


def test_the_induction_heads(gpt2):
    """Those that several courses name; one published run has 0.83 to 0.93 for them."""
    found = head_scores(gpt2[0], seed=0, length=50, start_token_id=BOS)
    best = found.best("induction", 5)
    assert {head for head, _ in best} == {"5.1", "5.5", "6.9", "7.2", "7.10"}
    assert min(score for _, score in best) >= 0.7
    assert found.best("previous", 1)[0][0] == "4.11"
    losses = token_losses(gpt2[0], found.ids).losses
    assert losses[50:].mean() < losses[:50].mean() / 4


def test_the_loss_of_hello(gpt2):
    """From TransformerLens: the mean loss of "Hello world!" after BOS."""
    assert token_losses(gpt2[0], [BOS, 15496, 995, 0]).mean == pytest.approx(5.331855773925781, abs=4e-5)


def test_the_first_position_carries_one_huge_number(gpt2):
    """Sun et al., 2024: in the middle layers, dimension 447 at position 0 alone."""
    with torch.no_grad(), trace(gpt2[0], ["*embed", "*.resid_*", "*.out"]) as t:
        gpt2[0](torch.tensor([[BOS, *gpt2[1].encode("The quick brown fox jumps over the lazy dog.")]]))
    found = residual_norms(t)
    middle = found.points.index("blocks.6.resid_post")
    norms = found.norms[middle, 0]
    assert int(found.largest(1)[0][middle, 0, 0]) == 447
    assert norms[0] > 50 * norms[1:].median()


@pytest.mark.parametrize("position", [100, 500, 900])
def test_positions_are_most_similar_to_the_next_ones(gpt2, position):
    assert set(neighbours(gpt2[0], position, 2, table="wpe").ids) == {position - 1, position + 1}
