"""What docs/decoding-differences.md promises and no other file tests."""

from typing import Any

import torch

from minigpt.decoding.generate import generate
from minigpt.model import GPT


def test_d2_no_filter_is_hidden(pair: Any) -> None:
    """Without options, tokens beyond the fifty best are drawn too: here the flat distribution of 97 tokens is."""
    model = GPT(type(pair.ours.config)(vocab_size=97, block_size=8, n_layer=1, n_head=1, n_embd=8)).eval()
    with torch.no_grad():
        model.wte.weight.zero_()
    result = generate(model, [[1]], max_new_tokens=1, temperature=1.0, num_return_sequences=2000)
    assert {ids[1] for ids in result.sequences} == set(range(97))


def test_d4_ngrams_of_a_short_row(pair: Any) -> None:
    prompts = [[9], [10, 11, 12, 13, 14, 15, 16]]
    options: dict[str, Any] = {"strategy": "greedy", "max_new_tokens": 43, "no_repeat_ngram_size": 1}
    together = generate(pair.ours, prompts, **options)
    assert together.sequences == [generate(pair.ours, [prompt], **options).sequences[0] for prompt in prompts]
    assert 49 in together.sequences[0], "the id that the reference is padded with is one like any other"


def test_d11_equal_seeds_are_equal_chance(tiny_model: GPT) -> None:
    """Wherever a prompt stands and whoever stands beside it, its own seed decides; so equal seeds draw the same."""
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 2.0, "num_return_sequences": 2}

    def drawn(prompts: list[list[int]], seeds: list[int]) -> list[list[list[int]]]:
        sequences = generate(tiny_model, prompts, seed=seeds, **options).sequences
        return [sequences[at : at + 2] for at in range(0, len(sequences), 2)]

    (alone,) = drawn([[1, 2]], [5])
    assert alone[0] != alone[1], "the copies of one prompt share a seed, but no noise"
    twins = drawn([[9], [1, 2], [4, 5, 6], [1, 2]], [8, 5, 5, 5])
    assert twins[1] == twins[3] == alone
    others = drawn([[1, 2]] * 4, [4, 5, 6, 7])
    assert others[1] == alone
    assert len({tuple(ids) for one in others for ids in one}) == 8, "what wants to differ takes different seeds"


def test_d6_d7_nothing_follows_an_end(tiny_model: GPT) -> None:
    class Letters:
        vocab_size = 23

        def token_bytes(self, token_id: int) -> bytes:
            return bytes([97 + token_id])

    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    cases: list[dict[str, Any]] = [{"strategy": "greedy"}, {"strategy": "beam", "num_beams": 3}, {"seed": 1}]
    for options in cases:
        stop = [chr(97 + token) for token in range(0, 23, 3)]
        result = generate(tiny_model, prompts, max_new_tokens=8, stop=stop, tokenizer=Letters(), **options)
        lengths = set()
        for prompt, ids, reason in zip(prompts, result.sequences, result.finish_reasons, strict=True):
            new = ids[len(prompt) :]
            lengths.add(len(new))
            assert [token % 3 == 0 for token in new[:-1]] == [False] * (len(new) - 1)
            assert (new[-1] % 3 == 0) == (reason == "stop")
        assert len(lengths) > 1, "the rows must end at different times here"
