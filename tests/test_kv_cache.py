"""The cache's invariants: cutting a sequence into calls, copying, shortening and poisoning change nothing."""

import itertools

import pytest
import torch

from minigpt.errors import InputError
from minigpt.kv_cache import KVCache

ATOL = 1e-5


def cuts(length: int):
    """Every way to cut a sequence into up to three calls."""
    for a, b in itertools.combinations_with_replacement(range(length + 1), 2):
        yield [size for size in (a, b - a, length - b) if size]


@torch.no_grad()
def test_any_cut_gives_the_uncached_logits(tiny_model, tiny_config):
    """I1, I4: also at the context's last position."""
    idx = torch.randint(23, (2, 13))
    expected = tiny_model(idx)
    for sizes in cuts(13):
        cache = KVCache(tiny_config, 2)
        found = torch.cat([tiny_model(piece, cache=cache) for piece in idx.split(sizes, dim=1)], dim=1)
        assert (found - expected).abs().max() < ATOL, sizes
        assert cache.uniform == 13
        assert cache.length.tolist() == [13, 13]


@torch.no_grad()
def test_token_by_token(tiny_model, tiny_config):
    idx = torch.randint(23, (3, 11))
    cache = KVCache(tiny_config, 3, max_length=11)
    found = torch.cat([tiny_model(idx[:, t : t + 1], cache=cache) for t in range(11)], dim=1)
    assert (found - tiny_model(idx)).abs().max() < ATOL


@torch.no_grad()
def test_cached_keys_equal_a_full_forward_column_by_column(tiny_model, tiny_config):
    idx = torch.randint(23, (2, 11))
    full, stepped = KVCache(tiny_config, 2), KVCache(tiny_config, 2)
    tiny_model(idx, cache=full)
    for t in range(11):
        tiny_model(idx[:, t : t + 1], cache=stepped)
    assert (full.k - stepped.k).abs().max() < ATOL
    assert (full.v - stepped.v).abs().max() < ATOL
    assert full.k[:, :, :, :11].abs().amin(dim=(2, 4)).min() > 0  # every column was written


@torch.no_grad()
def ragged(model, config, lengths, idx):
    """A cache of rows with these lengths, as a decoder fills it: right-padded, and the padding taken back."""
    cache = KVCache(config, len(lengths))
    longest = max(lengths)
    padded = torch.zeros(len(lengths), longest, dtype=torch.int64)
    for row, length in enumerate(lengths):
        padded[row, :length] = idx[row, :length]
    logits = model(padded, cache=cache)
    cache.rollback(torch.tensor([longest - length for length in lengths]))
    return cache, logits


@torch.no_grad()
@pytest.mark.parametrize("num_new", [1, 3])
def test_ragged_rows_equal_single_rows(tiny_model, tiny_config, num_new):
    """No padding is visible: each row is as if it were alone, in prefill and afterwards."""
    lengths = [2, 7, 5]
    idx = torch.randint(23, (3, 13))
    cache, logits = ragged(tiny_model, tiny_config, lengths, idx)
    new = torch.stack([idx[row, length : length + num_new] for row, length in enumerate(lengths)])
    step = tiny_model(new, cache=cache)
    assert cache.uniform is None
    assert cache.length.tolist() == [length + num_new for length in lengths]
    for row, length in enumerate(lengths):
        alone = tiny_model(idx[row : row + 1, : length + num_new])[0]
        assert (logits[row, :length] - alone[:length]).abs().max() < ATOL
        assert (step[row] - alone[length:]).abs().max() < ATOL


@torch.no_grad()
@pytest.mark.parametrize("value", [1e4, -1e4])
def test_dead_columns_may_hold_anything_finite(tiny_model, tiny_config, value):
    """I2."""
    lengths = [2, 7, 5]
    idx = torch.randint(23, (3, 13))
    expected = None
    for poison in (0.0, value):
        cache, _ = ragged(tiny_model, tiny_config, lengths, idx)
        for row, length in enumerate(lengths):
            cache.k[:, row, :, length:] = poison
            cache.v[:, row, :, length:] = poison
        logits = tiny_model(idx[:, 8:10], cache=cache)
        expected = logits if expected is None else expected
        assert torch.equal(logits, expected)


def test_memory_starts_as_zeros(tiny_config):
    """I3: 0 * NaN is NaN, so uninitialised memory would poison rows that never look at it."""
    cache = KVCache(tiny_config, 3, max_length=7, dtype=torch.float64)
    assert cache.k.shape == (2, 3, 3, 7, 5)
    assert cache.k.dtype == torch.float64
    assert not cache.k.any()
    assert not cache.v.any()


@torch.no_grad()
def test_rollback_then_refeed_equals_never_having_fed(tiny_model, tiny_config):
    """I5, with one number and with one per row."""
    idx, wrong = torch.randint(23, (2, 11)), torch.randint(23, (2, 4))
    expected = tiny_model(idx)
    cache = KVCache(tiny_config, 2)
    tiny_model(idx[:, :5], cache=cache)
    tiny_model(wrong, cache=cache)
    cache.rollback(4)
    assert cache.uniform == 5
    found = tiny_model(idx[:, 5:8], cache=cache)
    assert (found - expected[:, 5:8]).abs().max() < ATOL
    cache.rollback(torch.tensor([1, 2]))
    assert cache.uniform is None
    step = tiny_model(torch.stack([idx[0, 7:8], idx[1, 6:7]]), cache=cache)
    assert (step[0, 0] - expected[0, 7]).abs().max() < ATOL
    assert (step[1, 0] - expected[1, 6]).abs().max() < ATOL


@torch.no_grad()
def test_gather_copies_rows_that_do_not_alias(tiny_model, tiny_config):
    """I6."""
    idx = torch.randint(23, (3, 9))
    cache = KVCache(tiny_config, 3)
    tiny_model(idx[:, :8], cache=cache)
    before = cache.k.clone()
    cache.gather(torch.arange(3))
    assert torch.equal(cache.k, before)
    cache.gather(torch.tensor([2, 2, 0]))
    expected = tiny_model(torch.cat([idx[[2, 2, 0], :8], idx[:, 8:]], dim=1))[:, 8:]
    assert (tiny_model(idx[:, 8:], cache=cache) - expected).abs().max() < ATOL
    cache.k[:, 0] = 0
    assert cache.k[:, 1, :, :9].abs().sum() > 0


@torch.no_grad()
def test_gather_after_a_shared_prefix(tiny_model, tiny_config):
    """Rows that share their first columns exchange only the later ones."""
    prefix = torch.randint(23, (1, 4)).expand(3, 4)
    idx = torch.cat([prefix, torch.randint(23, (3, 4))], dim=1)
    cache, whole = (KVCache(tiny_config, 3, dtype=torch.float64) for _ in range(2))
    for one in (cache, whole):
        tiny_model.double()(idx, cache=one)
    rows = torch.tensor([1, 0, 1])
    cache.gather(rows, first_column=4)
    whole.gather(rows)
    # Alike within the rounding of sums of 60: the shared columns are of other rows, which are rounded for themselves.
    assert torch.allclose(cache.k, whole.k, rtol=0, atol=1e-13)
    assert torch.allclose(cache.v, whole.v, rtol=0, atol=1e-13)


@torch.no_grad()
def test_expand_fans_a_prompt_out(tiny_model, tiny_config):
    lengths = [3, 6]
    idx = torch.randint(23, (2, 13))
    cache, _ = ragged(tiny_model, tiny_config, lengths, idx)
    cache.expand(2)
    assert cache.batch_size == 4
    assert cache.length.tolist() == [3, 3, 6, 6]
    new = torch.randint(23, (4, 1))
    logits = tiny_model(new, cache=cache)
    for row in range(4):
        alone = torch.cat([idx[row // 2, : lengths[row // 2]], new[row]])[None]
        assert (logits[row, 0] - tiny_model(alone)[0, -1]).abs().max() < ATOL


@torch.no_grad()
def test_gather_of_fewer_rows(tiny_model, tiny_config):
    idx = torch.randint(23, (3, 13))
    cache, _ = ragged(tiny_model, tiny_config, [2, 7, 5], idx)
    cache.gather(torch.tensor([2]))
    assert (cache.batch_size, cache.uniform, cache.longest) == (1, 5, 5)
    assert (tiny_model(idx[2:, 5:6], cache=cache) - tiny_model(idx[2:, :6])[:, 5:]).abs().max() < ATOL


@torch.no_grad()
def test_too_many_tokens_are_refused_before_anything_is_written(tiny_model, tiny_config):
    cache = KVCache(tiny_config, 1, max_length=7)
    idx = torch.randint(23, (1, 8))
    tiny_model(idx[:, :6], cache=cache)
    before = cache.k.clone()
    with pytest.raises(InputError, match="2 more tokens do not fit: 6 of the cache's 7 columns"):
        tiny_model(idx[:, 6:], cache=cache)
    assert torch.equal(cache.k, before)
    assert cache.uniform == 6


def test_impossible_caches_are_refused(tiny_config):
    with pytest.raises(InputError, match="14 columns does not fit a block_size of 13"):
        KVCache(tiny_config, 1, max_length=14)
    with pytest.raises(InputError, match="0 rows"):
        KVCache(tiny_config, 0)
    cache = KVCache(tiny_config, 2)
    with pytest.raises(InputError, match="take back 1"):
        cache.rollback(1)


def test_nothing_of_the_cache_stays_with_the_model(tiny_model, tiny_config):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    tiny_model(torch.zeros(1, 5, dtype=torch.int64), cache=KVCache(tiny_config, 1))
    after = tiny_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
