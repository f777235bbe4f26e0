"""Weights return bit for bit, a tied tensor is stored once, and a bad file changes nothing and runs nothing."""

import dataclasses
import io
import json
import math
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.errors import CheckpointError, MissingFileError
from minigpt.formats import weights
from minigpt.formats.weights import check_values, fill, open_weights, save_weights, write_safetensors
from minigpt.model import GPT
from minigpt.parameters import empty_model, own_tensors

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    """A .safetensors file with any header, true or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def values(path: Path, name: str) -> torch.Tensor:
    stored = open_weights(path)[name]
    return torch.cat(list(stored.pieces()))


# --- in and out


def load_weights(model, path):
    """Read what `save_weights` wrote."""
    fill(own_tensors(model), open_weights(path), path, "")


@pytest.mark.parametrize("tie_weights", [True, False])
def test_round_trip_is_bit_exact(tiny_config, tmp_path, tie_weights):
    config = dataclasses.replace(tiny_config, tie_weights=tie_weights)
    model, other = GPT(config), GPT(config)
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert (other.lm_head.weight is other.wte.weight) is tie_weights
    stored = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert ("lm_head.weight" in stored) is not tie_weights
    assert not any("tril" in name for name in stored)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_library_reads_what_we_write(tmp_path, dtype):
    tensors = {"a": torch.randn(5, 7).to(dtype), "b": torch.randn(3, 11).to(dtype).T, "c": torch.randn(2).to(dtype)}
    write_safetensors(tmp_path / "w.safetensors", tensors, dtype)
    theirs = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert theirs.keys() == tensors.keys()
    assert all(theirs[name].dtype == dtype and torch.equal(theirs[name], tensors[name]) for name in tensors)
    with safetensors.safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("piece", [1, 100, 2**23])
def test_we_read_what_the_library_writes(tmp_path, monkeypatch, dtype, piece):
    monkeypatch.setattr(weights, "_PIECE", piece)
    tensors = {"a": torch.randn(13, 7).to(dtype), "b": torch.randn(3).to(dtype)}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(values(tmp_path / "w.safetensors", name), tensor)
    stored, target = open_weights(tmp_path / "w.safetensors"), torch.zeros(7, 13, dtype=torch.float64)
    fill({"a": target.T, "b": torch.zeros(3)}, stored, tmp_path, "")
    assert torch.equal(target, tensors["a"].T.double())
    assert torch.equal(torch.cat(list(stored["a"].rows(2, 5).pieces())), tensors["a"][2:5])


def test_equality_of_stored_tensors_is_that_of_their_values(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_PIECE", 40)
    a = torch.arange(35.0).view(7, 5)
    other = a.clone()
    other[6, 4] = 0
    safetensors.torch.save_file(
        {"a": a, "same": a.clone(), "other": other, "half": a.half(), "short": a[:6].clone()},
        tmp_path / "w.safetensors",
    )
    stored = open_weights(tmp_path / "w.safetensors")
    assert [name for name in stored if stored["a"].equals(stored[name])] == ["a", "same"]


@pytest.mark.parametrize("tie_weights", [True, False])
def test_an_empty_model_costs_no_random_numbers(tiny_config, tie_weights):
    config = dataclasses.replace(tiny_config, tie_weights=tie_weights)
    before = torch.get_rng_state()
    model = empty_model(config)
    assert torch.equal(torch.get_rng_state(), before)
    usual = GPT(config)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in usual.named_parameters()}
    assert (model.lm_head.weight is model.wte.weight) is tie_weights
    buffers = dict(model.named_buffers())
    assert buffers
    assert all(torch.equal(buffers[name], buffer) for name, buffer in usual.named_buffers())


# --- what does not fit


def test_all_differences_are_named_and_the_model_stays(tiny_model, tmp_path):
    state = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items() if name != "lm_head.weight"}
    state["h.1.mlp.c_fc.weight"] = state["h.1.mlp.c_fc.weight"].T.contiguous()
    state["ln_f.bias"] = torch.zeros(19)
    state["ln_f.weight"] = torch.ones(15, dtype=torch.int8)
    state["extra"] = torch.zeros(1)
    for name in ("wpe.weight", "h.0.ln_1.bias", "h.1.ln_1.bias"):
        del state[name]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    before = [parameter.clone() for parameter in tiny_model.parameters()]
    with pytest.raises(CheckpointError) as raised:
        load_weights(tiny_model, tmp_path / "w.safetensors")
    for part in ("wpe.weight is missing;", "h.N.ln_1.bias is missing (in 2 layers: N from 0 to 1);",
                 "extra is not part of the model;",
                 "h.1.mlp.c_fc.weight has shape (15, 60), expected (60, 15), looks transposed",
                 "ln_f.bias has shape (19,), expected (15,)", "ln_f.weight holds int8"):  # fmt: skip
        assert part in raised.value.what
    assert raised.value.what.count("looks transposed") == 1
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_model.parameters(), strict=True))


@pytest.mark.parametrize("keep", [1, 7, 8, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(tiny_model, tmp_path, keep):
    path = tmp_path / "w.safetensors"
    save_weights(tiny_model, path)
    content = path.read_bytes()
    kept = keep if isinstance(keep, int) else int(keep * len(content))
    path.write_bytes(content[:kept])
    before = [parameter.clone() for parameter in tiny_model.parameters()]
    with pytest.raises(CheckpointError, match=rf"w\.safetensors \({kept:,} bytes\) is damaged or no safetensors file"):
        load_weights(tiny_model, path)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny_model.parameters(), strict=True))


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.safetensors.index.json"])
def test_a_missing_file(name):
    with pytest.raises(MissingFileError, match=f"there is no file {name}"):
        open_weights(Path(name))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 548105171\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", r"\(0 bytes\) is empty"),
        (POINTER, r"\(134 bytes\) is a git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", r"\(44 bytes\) is an HTML or XML page"),
        (b'\n <?xml version="1.0"?><Error><Code>NoSuchBucket</Code></Error>', r"\(63 bytes\) is an HTML or XML page"),
        (bytes(range(200)), r"\(200 bytes\) is (damaged or no|not UTF-8)"),
        (b"[" * 5000, r"\(5,000 bytes\) is (damaged or no|not JSON)"),
    ],
)
def test_what_is_saved_in_the_place_of_weights_is_named(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=what):
        open_weights(tmp_path / name)


def test_a_header_that_looks_like_a_page_is_none(tmp_path):
    """The length of this header, 0x3C20, begins with a space and a "<"."""
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode().ljust(0x3C20)
    assert values(write_raw(tmp_path / "w.safetensors", text, b"\0\0\x80?"), "a").tolist() == [1.0]


def test_a_zip_archive_is_no_safetensors_file(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="zip archive"):
        open_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_short_answer_saved_as_weights_is_quoted(tmp_path, name):
    (tmp_path / name).write_bytes(b"Entry not found\n")
    with pytest.raises(CheckpointError, match=r"\(16 bytes\) holds a line of text, 'Entry not found'"):
        open_weights(tmp_path / name)


def test_a_page_with_a_byte_order_mark_is_a_page(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\xef\xbb\xbf\r\n<!DOCTYPE html><html><body>no</body></html>" * 3)
    with pytest.raises(CheckpointError, match="is an HTML or XML page"):
        open_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_values_that_are_not_finite_are_refused(tmp_path, monkeypatch, suffix, value):
    """1e300 is a number in float64, and none in the model's float32. Only the last of several pieces has it."""
    monkeypatch.setattr(weights, "_PIECE", 100)
    tensors = {"a": torch.zeros(3), "b": torch.zeros(13, 7, dtype=torch.float64)}
    tensors["b"][12, 6] = value
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    save(tensors, tmp_path / f"w.{suffix}")
    stored = open_weights(tmp_path / f"w.{suffix}")
    with pytest.raises(CheckpointError, match="has values in b that are infinite, or not a number"):
        fill({"a": torch.ones(3), "b": torch.ones(13, 7)}, stored, tmp_path / "w", "")


def test_the_same_nans_are_equal(tmp_path):
    """Or two copies of a damaged tensor would be called different."""
    a = torch.zeros(7, 5)
    a[3, 2] = math.nan
    safetensors.torch.save_file({"a": a, "same": a.clone(), "zeros": torch.zeros(7, 5)}, tmp_path / "w.safetensors")
    stored = open_weights(tmp_path / "w.safetensors")
    assert stored["a"].equals(stored["same"])
    assert not stored["a"].equals(stored["zeros"])


def test_many_problems_are_counted(tmp_path):
    stored = {f"{letter}.{i}.weight": torch.zeros(1) for letter in "abcdefghijklm" for i in range(5)}
    safetensors.torch.save_file(stored, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as raised:
        fill({}, open_weights(tmp_path / "w.safetensors"), tmp_path / "w", "")
    assert "a.N.weight is not part of the model (in 5 layers: N from 0 to 4); b.N." in raised.value.what
    assert raised.value.what.endswith("j.N.weight is not part of the model (in 5 layers: N from 0 to 4) and 3 more")


# --- headers that lie


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(shape=(2, 4))},  # larger than its place
        {"a": entry(shape=(2, 2))},
        {"a": entry(dtype="F64")},
        {"a": entry(offsets=(0, 20))},
        {"a": entry(offsets=(4, 28))},  # begins late, ends behind the file
        {"a": entry(offsets=(24, 0))},
        {"a": entry(offsets=(-24, 0))},
        {"a": entry(offsets=(0, 2**70))},
        {"a": entry(shape=(2**40, 2**40))},
        {"a": entry(shape=(-2, -3))},
        {"a": entry(shape=(2.0, 3))},
        {"a": entry(shape=(True, 6))},
        {"a": entry(shape=("2", 3))},
        {"a": entry(dtype="F31")},
        {"a": entry(dtype=["F32"])},
        {"a": {"dtype": "F32", "shape": [2, 3]}},
        {"a": entry(offsets=(0, 12, 24))},
        {"a": 24},
        {"a": None},
        {"a": entry(shape=(3,), offsets=(0, 12))},  # half of the file belongs to nobody
        {"a": entry(shape=(3,), offsets=(0, 12)), "b": entry(shape=(3,), offsets=(8, 20))},  # overlap
        {"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(shape=(3,), offsets=(12, 24))},  # hole
        {"a": entry(), "b": entry()},
        {},
        {"a": entry(), "__metadata__": ["format"]},
        {"a": entry(), "__metadata__": {"format": 1}},
        ["a", entry()],
        b"",
        b"{",
        b'{"a": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    path = write_raw(tmp_path / "w.safetensors", header, bytes(24))
    with pytest.raises(safetensors.SafetensorError):  # so does the library, which checks the test itself
        safetensors.safe_open(path, framework="pt").__enter__()
    with pytest.raises(CheckpointError, match=r"w\.safetensors .* is damaged or no safetensors file"):
        open_weights(path)


@pytest.mark.parametrize(("length", "size"), [(2**63, 32), (25, 32), (10**8 + 1, 10**8 + 100)])
def test_the_length_of_a_header_is_checked_before_it_is_read(tmp_path, length, size):
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(size)  # a hole, which takes no room on the disk
    with pytest.raises(CheckpointError, match=f"its header should have {length:,} bytes"):
        open_weights(tmp_path / "w.safetensors")


numbers = st.integers(-1, 9) | st.sampled_from([0, 4, 8, 12, 16, 24])
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "F64", "U8", "BOOL", "X"]),
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=2, max_size=2),
    }
)


@st.composite
def headers(draw):
    """Right headers, most of them with one entry changed."""
    header, end = {}, 0
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True)):
        dtype, size = draw(st.sampled_from([("F32", 4), ("F16", 2), ("F64", 8)]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        begin, end = end, end + size * math.prod(shape)
        header[name] = entry(dtype, shape, (begin, end))
    if header and draw(st.booleans()):
        header[draw(st.sampled_from(sorted(header)))] |= draw(entries)
    return header, draw(st.just(end) | st.integers(0, 60))


@settings(max_examples=300)
@given(headers())
def test_what_we_accept_the_library_accepts_and_sees_alike(tmp_path_factory, case):
    header, size = case
    path = write_raw(tmp_path_factory.mktemp("header") / "w.safetensors", header, bytes(size))
    try:
        ours = {name: stored.shape for name, stored in open_weights(path).items()}
    except CheckpointError:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.safe_open(path, framework="pt").__enter__()
        return
    with safetensors.safe_open(path, framework="pt") as file:
        assert ours == {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


# --- torch's own format


class Code:
    """A pickle that leaves something behind when it is loaded without care."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(zipped):
    torch.save({"wte.weight": Code()}, "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"is not a safe checkpoint: .* run \w+\.mkdir") as raised:
        open_weights(Path("pytorch_model.bin"))
    assert not Path("canary").exists()
    assert "weights_only" not in str(raised.value)  # torch's own message says how to run the code
    torch.load("pytorch_model.bin", weights_only=False)  # the canary sings where it is let
    assert Path("canary").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("form", ["zip", "old", "plain"])
def test_code_is_named_whatever_the_protocol(protocol, form, recwarn):
    """torch's own words differ by protocol, and for some it only warns; the strings before os.mkdir are a decoy."""
    content = {"decoy": ["torch", "save"], "again": ["torch", "save"], "wte.weight": Code()}
    if form == "plain":
        Path("w.bin").write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, "w.bin", pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
    recwarn.clear()
    with pytest.raises(CheckpointError, match=rf"is not a safe checkpoint: .* run {os.mkdir.__module__}\.mkdir"):
        open_weights(Path("w.bin"))
    assert not recwarn.list
    assert not Path("canary").exists()


def test_names_that_a_pickle_says_once_are_remembered():
    """From protocol 4 on, a name said before is taken from the memo."""
    pickled = pickle.dumps([os.mkdir, os.rmdir, os.mkdir.__module__, "rmdir", os.rename], protocol=4)
    module = os.mkdir.__module__
    assert list(weights._imported(io.BytesIO(pickled))) == [f"{module}.{name}" for name in ("mkdir", "rmdir", "rename")]


@pytest.mark.parametrize("zipped", [True, False])
def test_both_of_torchs_formats_are_read(zipped):
    tensors = {"a": torch.randn(5, 7), "b": torch.randn(3, 2).half().T}
    torch.save(tensors, "w.bin", _use_new_zipfile_serialization=zipped)
    for name, tensor in tensors.items():
        assert torch.equal(values(Path("w.bin"), name), tensor)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.6, 0.99])
def test_a_truncated_checkpoint_of_torch_is_named(zipped, keep):
    torch.save({"a": torch.randn(50, 70)}, "w.bin", _use_new_zipfile_serialization=zipped)
    content = Path("w.bin").read_bytes()
    Path("w.bin").write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CheckpointError, match=r"w\.bin \([\d,]+ bytes\) is damaged or no torch checkpoint"):
        open_weights(Path("w.bin"))


def test_another_zip_archive_is_no_checkpoint():
    with zipfile.ZipFile("w.bin", "w") as archive:
        archive.writestr("folder/file", "text")
    with pytest.raises(CheckpointError, match="damaged or no torch checkpoint"):
        open_weights(Path("w.bin"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (torch.zeros(3), "holds a Tensor"),
        ({"a": torch.zeros(3), "step": 7}, "holds more than plain tensors: step"),
        ({0: torch.zeros(3)}, "holds more than plain tensors: 0"),
        ({"a": torch.zeros(3).to_sparse()}, "holds more than plain tensors: a"),
        ({"a": torch.complex(torch.ones(3), torch.ones(3)).conj().imag}, "holds more than plain tensors: a"),
        ({"a": torch.zeros(3, device="meta")}, "holds more than plain tensors: a"),
        (dict.fromkeys(range(13), 0), r"plain tensors: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more"),
    ],
)
def test_what_is_no_state_dict_is_named(content, what):
    torch.save(content, "w.bin")
    with pytest.raises(CheckpointError, match=what):
        open_weights(Path("w.bin"))


# --- several files


@pytest.fixture
def index(tmp_path):
    """Two shards, and what writes their index."""
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "1.safetensors")
    safetensors.torch.save_file({"b": torch.ones(3), "c": torch.ones(1)}, tmp_path / "2.safetensors")

    def write(**weight_map):
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return path

    return write


def test_an_index_says_which_file_has_which_tensor(index):
    path = index(a="1.safetensors", b="2.safetensors", c="2.safetensors")
    assert {name: stored.shape for name, stored in open_weights(path).items()} == {"a": (2,), "b": (3,), "c": (1,)}


def test_a_tensor_that_the_index_leaves_out_is_not_dropped(index, tmp_path):
    """The reference library reads whole shards, so it would have it."""
    with pytest.raises(CheckpointError, match=r": c is in 2\.safetensors, which it does not say"):
        open_weights(index(a="1.safetensors", b="2.safetensors"))
    safetensors.torch.save_file({"a": torch.ones(2), "d": torch.ones(1)}, tmp_path / "3.safetensors")
    with pytest.raises(CheckpointError, match=r": a is in 3\.safetensors, which it does not say"):
        open_weights(index(a="1.safetensors", b="2.safetensors", c="2.safetensors", d="3.safetensors"))


def test_missing_shards_are_listed(index):
    path = index(a="1.safetensors", b="3.safetensors", c="4.safetensors")
    with pytest.raises(MissingFileError, match=r"lacks 2 of 3 weights files: 3\.safetensors, 4\.safetensors"):
        open_weights(path)


def test_an_index_that_contradicts_its_shards(index):
    with pytest.raises(CheckpointError, match=r"a is not in 2\.safetensors; d is not in 1\.safetensors"):
        open_weights(index(a="2.safetensors", d="1.safetensors"))


@pytest.mark.parametrize("shard", ["../1.safetensors", "/etc/passwd", "x/1.safetensors", "1.txt", "", 7, None])
def test_an_index_leads_nowhere_else(index, shard):
    with pytest.raises(CheckpointError, match="does not say which file beside it holds which tensor"):
        open_weights(index(a=shard))


def test_tensors_of_a_torch_file_are_read_where_they_lie(tmp_path):
    torch.manual_seed(3)
    whole = torch.randn(7, 5)
    state = {"plain": whole, "part": whole[2:5], "turned": whole.T, "column": whole[1:, 3], "half": whole.half()}
    torch.save(state, tmp_path / "w.bin")
    with zipfile.ZipFile(tmp_path / "w.bin") as archive, zipfile.ZipFile(tmp_path / "packed.bin", "w", 8) as packed:
        for entry in archive.namelist():  # compressed, as torch never writes it but reads it
            packed.writestr(entry, archive.read(entry))
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("w.bin", "packed.bin", "old.bin"):
        stored = open_weights(tmp_path / name)
        assert stored.keys() == state.keys()
        for key, tensor in state.items():
            assert (stored[key].shape, stored[key].dtype) == (tuple(tensor.shape), tensor.dtype)
            target = torch.zeros(tensor.shape, dtype=tensor.dtype)
            stored[key].copy_to(target)
            assert torch.equal(target, tensor), (name, key)
            assert torch.equal(stored[key].read_rows(1, 3), tensor[1:3]), (name, key)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("a", (0, 2**70)), ("a", (2**62, 0, 2**62)), ("\ud800", (6,)), ("a\x1b[2J", (6,))],
)
def test_an_entry_that_nothing_can_hold_hash_or_print_is_refused(tmp_path, name, shape):
    size = 4 * math.prod(shape)
    stored = {"z": entry(), name: entry(shape=shape, offsets=(24, 24 + size))}
    path = write_raw(tmp_path / "w.safetensors", stored, bytes(24 + size))
    with pytest.raises(CheckpointError, match="its header describes") as refused:
        check_values(path)
    assert str(refused.value).isascii()
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("shape", [(0,), (5, 0), (0, 3)])
def test_an_entry_without_values_is_read(tmp_path, shape):
    path = write_raw(tmp_path / "w.safetensors", {"a": entry(shape=shape, offsets=(0, 0))}, b"")
    check_values(path)
    stored, target = open_weights(path), torch.zeros(shape)
    fill({"a": target}, stored, path, "")
    assert stored["a"].read().shape == shape
    assert stored["a"].equals(open_weights(path)["a"])
