"""The schema minigpt-trace/1: what is written can be read back, by JSON and numpy alone."""

import json
import math

import numpy as np
import pytest
import torch

from minigpt.analysis.checks import Check
from minigpt.analysis.results import Numbers, Result


@pytest.fixture
def record(tiny_config):
    return Result(
        view="attn",
        model="checkpoints/naïve",
        config=tiny_config,
        numbers={
            "pattern": Numbers(("head", "query", "key"), torch.tensor([[[0.1, -math.inf], [1 / 3, math.nan]]])),
            "id": Numbers(("query",), [7, 11]),
            "kept": Numbers(("query",), [True, False]),
            "mean": Numbers((), 0.1),
        },
        prompt="ö ",
        bos=False,
        tokens=[(7, "ö"), (11, " ")],
        labels={"query": ["ö", " "]},
        settings={"layer": 1},
        checks=[Check("rows sum to 1", math.nan, 1e-5, False)],
    )


def test_json_holds_everything_with_names_and_shapes(record, tmp_path):
    record.save(tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert read == record.to_dict()
    assert read["schema"] == "minigpt-trace/1"
    assert (read["view"], read["prompt"], read["bos"]) == ("attn", "ö ", False)
    assert read["model"] == {"name": "checkpoints/naïve", **vars(record.config)}
    assert read["tokens"] == [{"id": 7, "text": "ö"}, {"id": 11, "text": " "}]
    pattern = read["numbers"]["pattern"]
    assert pattern["axes"] == ["head", "query", "key"]
    assert pattern["shape"] == [1, 2, 2]
    # The digits of float32, neither more nor fewer; what JSON cannot hold is null.
    assert pattern["values"] == [[[0.1, None], [0.33333334, None]]]
    assert read["numbers"]["id"] == {"axes": ["query"], "shape": [2], "values": [7, 11]}
    assert read["numbers"]["kept"]["values"] == [True, False]
    assert read["numbers"]["mean"] == {"axes": [], "shape": [], "values": 0.1}
    assert read["checks"] == [{"name": "rows sum to 1", "error": None, "tolerance": 1e-5, "ok": False}]


def test_arrays_are_exact_and_say_what_they_are(record, tmp_path):
    record.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        np.testing.assert_array_equal(arrays["pattern"], record.numbers["pattern"].values.numpy())
        assert arrays["pattern"].dtype == np.float32
        assert arrays["id"].tolist() == [7, 11]
    assert about.pop("axes") == {"pattern": ["head", "query", "key"], "id": ["query"], "kept": ["query"], "mean": []}
    assert about == record.about()


def test_without_checks_there_is_no_such_field(record):
    assert "checks" not in Result("size", "m", None, {}).to_dict()
    assert Result("size", "m", None, {}).to_dict()["model"] == {"name": "m"}


@pytest.mark.parametrize("name", ["a.json", "a.npz"])
def test_a_write_that_fails_leaves_what_was_there(record, tmp_path, name, monkeypatch):
    (tmp_path / name).write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        record.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"
