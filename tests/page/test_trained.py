"""The page against the model where it counts: with weights that have learned something, from text to text."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from minigpt.analysis import points, trace
from minigpt.cli.main import answer
from minigpt.config import GPTConfig
from minigpt.data.verse import write_verse
from minigpt.decoding.filters import apply_filters
from minigpt.decoding.generate import generate
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.sampling import sample
from minigpt.formats.pretrained import load_model
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer, Tokenizer
from tests.page.conftest import Node, the_model

TEXT = Path(__file__).with_name("test_engine.py").read_text("utf-8")
PROMPT = "def test_"
Trained = tuple[GPT, Tokenizer]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A few seconds on the text of a test: enough to write Python's words."""
    tokenizer = CharTokenizer.from_text(TEXT)
    torch.manual_seed(3)
    model = GPT(GPTConfig(tokenizer.vocab_size, block_size=64, n_layer=2, n_head=3, n_embd=3 * 13, bias=False))
    data = torch.tensor(tokenizer.encode(TEXT))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        rows = torch.stack([data[at : at + 65] for at in torch.randint(len(data) - 65, (12,)).tolist()])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 3  # from 4.3
    return model.eval(), tokenizer


@torch.no_grad()
def check(node: Node, model: GPT, tokenizer: Tokenizer, prompt: str, new: int) -> None:
    """Every point of a pass, new tokens of greedy text, and as many drawn with the same uniform numbers."""
    ids, V, longest = tokenizer.encode(prompt), tokenizer.vocab_size, model.config.block_size
    greedy = {"strategy": "greedy", "max_new_tokens": new, "on_overflow": "crop"}
    drawing = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.05}
    uniforms = torch.rand(new, V, generator=torch.Generator().manual_seed(9))
    drawn = {**drawing, "max_new_tokens": new, "on_overflow": "crop"}
    _, _, (passed,), best, sampled = node(
        [
            ("tokenizer", {"name": "t", "content": tokenizer.described()}),
            the_model("m", model),
            ("forward", {"model": "m", "pieces": [ids], "edits": [], "taps": ["*"]}),
            ("generate", {"model": "m", "prompt": ids, "options": greedy}),
            ("generate", {"model": "m", "prompt": ids, "options": drawn, "uniforms": uniforms.flatten()}),
        ]
    )
    with trace(model) as t:
        logits = model(torch.tensor([ids]))[0]
    torch.testing.assert_close(passed["logits"].view_as(logits), logits, rtol=0, atol=1e-4)
    for name in points(model.config):
        expected = t[name] if name == "pos_embed" else t[name][0]
        torch.testing.assert_close(passed["traced"][name], expected, rtol=0, atol=1e-4)

    (expected,) = generate(model, [ids], tokenizer=tokenizer, **greedy).sequences
    assert [token for token, _, _ in best] == expected[len(ids) :]
    for n in range(new):
        scores = model(torch.tensor([ids[-longest:]]))[:, -1, :V]
        scores = apply_filters(scores, [ids], DecodingOptions(**drawing), [n])[0]
        ids = [*ids, int(sample(scores, -torch.log1p(-uniforms[n])))]
    assert [token for token, _, _ in sampled] == ids[-new:]


def test_a_trained_model(node: Node, trained: Trained):
    check(node, *trained, PROMPT, 200)


@pytest.mark.slow
def test_a_quick_run(node: Node, tmp_path: Path):
    """The preset shakespeare-quick with its first steps alone, on a quarter of its windows."""
    run = str(tmp_path / "quick")
    Path("verse.txt").write_text(write_verse(0, 100_000).text, encoding="utf-8")  # it is evaluated as a whole
    flags = "--data verse.txt --train.max_steps 40 --train.batch_size 6 --train.eval_interval 40 --out"
    assert answer(["train", *flags.split(), run]) == 0
    check(node, *load_model(run), "the ", 140)  # its context is 128
