"""One more token for every row by one call of `one_token.c`, for a packed model whose products are all in C.

What starts and ends each of the some hundred operations of a pass, and lets one thread wait for another, is saved; and
attention to the cache reads it at the rate of memory. The numbers are those of `GPT.forward` within rounding.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minigpt.kv_cache import KVCache
from minigpt.model import GPT, Block
from minigpt.packed import CompiledLinear, CompiledParts, compiled_library

_FOR_A_THREAD = 2**20  # products of numbers, with fewer of which it is not worth waiting for another thread

_address, _size = ctypes.c_void_p, ctypes.c_ssize_t


class _Norm(ctypes.Structure):
    _fields_ = [("scale", _address), ("bias", _address), ("eps", ctypes.c_float)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Norm) for name in ("ln_1", "ln_2")),
        *((name, CompiledLinear) for name in ("qkv", "project", "widen", "narrow")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _size) for name in ("C", "H", "V", "num_layers", "num_pieces")),
        *((name, _address) for name in ("wte", "wpe", "layers")),
        ("last", _Norm),
        ("pieces", _address),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        ("numbers", _address), ("half", ctypes.c_int), ("columns", _size), ("length", _size), ("lengths", _address),
    ]  # fmt: skip


class OneCall:
    """A packed model's forward pass for one token of each row, with a cache.

    Args:
        model: on the CPU, in float32, all of its parts as `model.py` makes them.
        blocks: its blocks.
        parts: its products; see `PackedGPT.compiled`.
    """

    def __init__(self, model: GPT, blocks: Sequence[Block], parts: CompiledParts) -> None:
        library = compiled_library()
        assert not isinstance(library, str)  # it has made the products
        self._run, self._room = library.one_token, library.room_of_one_token
        self._run.argtypes = [_address, _address, _Cache, _size, _address, _address, ctypes.c_int]
        self._run.restype = None
        self._room.argtypes, self._room.restype = [_address, _size, _size, ctypes.c_int], _size

        self._config = config = model.config
        self._kept: list[object] = [parts]  # the library is given addresses alone
        layers = (_Layer * config.n_layer)(
            *(
                _Layer(self._norm(block.ln_1), self._norm(block.ln_2), *(product.layer for product in products))
                for block, products in zip(blocks, parts.blocks, strict=True)
            )
        )
        pieces = (CompiledLinear * len(parts.head))(*(product.layer for product in parts.head))
        self._kept += [layers, pieces]
        self._model = _Model(
            config.n_embd, config.n_head, config.vocab_size, config.n_layer, len(pieces),
            self._address(model.wte.weight), self._address(model.wpe.weight), ctypes.addressof(layers),
            self._norm(model.ln_f), ctypes.addressof(pieces),
        )  # fmt: skip
        products = [product.layer for some in (*parts.blocks, parts.head) for product in some]
        self._size = sum(layer.num_in * layer.num_out for layer in products)

    def _address(self, weight: Tensor) -> int:
        """Of numbers that stay where they are, even if the parameter is given others."""
        self._kept.append(weight.detach())
        return weight.data_ptr()

    def _norm(self, norm: nn.LayerNorm) -> _Norm:
        bias = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        return _Norm(self._address(norm.weight), self._address(bias), norm.eps)

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Logits of the token after one more of each row: idx int64 (B,) -> (B, V).

        Args:
            idx: ids of the vocabulary.
            cache: in float32 or float16, on the CPU. It then holds the tokens too.

        Raises:
            InputError: if the tokens do not fit the context, or the cache.
        """
        B, config = len(idx), self._config
        cache.check_room(1, config.block_size)
        cache.check_fits(config.n_layer - 1, B, config.n_head, config.n_embd // config.n_head)
        threads = min(torch.get_num_threads(), 1 + B * self._size // _FOR_A_THREAD)
        idx, lengths = idx.contiguous(), cache.length if cache.uniform is None else None
        place = _Cache(
            cache.kv.data_ptr(), cache.kv.dtype == torch.float16, cache.max_length, cache.longest,
            None if lengths is None else lengths.data_ptr(),
        )  # fmt: skip
        logits = idx.new_empty(B, config.vocab_size, dtype=torch.float32)
        room = idx.new_empty(self._room(ctypes.byref(self._model), B, cache.max_length, threads), dtype=torch.float32)
        self._run(
            ctypes.byref(self._model), idx.data_ptr(), place, B, logits.data_ptr(), room.data_ptr(), threads
        )  # fmt: skip
        cache.advance(1)
        return logits
