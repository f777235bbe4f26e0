"""The table of points: complete, in order, true of the model, under both spellings."""

from pathlib import Path

import pytest

from minigpt.analysis import taps
from minigpt.analysis.taps import PointError, find, points, resolve, shape
from minigpt.config import GPTConfig
from minigpt.errors import InputError
from minigpt.model import GPT

CONFIG = GPTConfig(vocab_size=19, block_size=13, n_layer=3, n_head=5, n_embd=35)
PAGE = Path(__file__).parent.parent.parent / "docs" / "internals.md"
B, T, S, C, H, D, V = 2, 11, 13, 35, 5, 7, 19

# written out, in the order of the forward pass: our name, the courses' name, the shape
BEFORE = [("embed", "hook_embed", (B, T, C)), ("pos_embed", "hook_pos_embed", (T, C))]
BLOCK = [
    ("resid_pre", "hook_resid_pre", (B, T, C)),
    ("ln_1.scale", "ln1.hook_scale", (B, T, 1)),
    ("ln_1.out", "ln1.hook_normalized", (B, T, C)),
    ("attn.q", "attn.hook_q", (B, H, T, D)),
    ("attn.k", "attn.hook_k", (B, H, S, D)),
    ("attn.v", "attn.hook_v", (B, H, S, D)),
    ("attn.scores", "attn.hook_attn_scores", (B, H, T, S)),
    ("attn.pattern", "attn.hook_pattern", (B, H, T, S)),
    ("attn.z", "attn.hook_z", (B, H, T, D)),
    ("attn.head_out", "attn.hook_result", (B, H, T, C)),
    ("attn.out", "hook_attn_out", (B, T, C)),
    ("resid_mid", "hook_resid_mid", (B, T, C)),
    ("ln_2.scale", "ln2.hook_scale", (B, T, 1)),
    ("ln_2.out", "ln2.hook_normalized", (B, T, C)),
    ("mlp.pre", "mlp.hook_pre", (B, T, 4 * C)),
    ("mlp.post", "mlp.hook_post", (B, T, 4 * C)),
    ("mlp.out", "hook_mlp_out", (B, T, C)),
    ("resid_post", "hook_resid_post", (B, T, C)),
]
AFTER = [
    ("ln_f.scale", "ln_final.hook_scale", (B, T, 1)),
    ("ln_f.out", "ln_final.hook_normalized", (B, T, C)),
    ("logits", None, (B, T, V)),
]
BLOCKS = [
    tuple(f"blocks.{layer}.{name}" for name in row[:2]) + row[2:] for layer in range(3) for row in BLOCK
]  # fmt: skip
EXPECTED = [*BEFORE, *BLOCKS, *AFTER]


def test_the_points_their_aliases_and_their_shapes():
    assert points(CONFIG) == [name for name, _, _ in EXPECTED]
    for name, alias, sizes in EXPECTED:
        assert find(name, CONFIG) == name
        assert shape(name, CONFIG, B, T, S) == sizes
        if alias is not None:
            assert find(alias, CONFIG) == name


def test_every_point_is_taken_at_a_module_that_the_model_has():
    model = GPT(CONFIG)
    paths = {name: taps.module_path(name) for name in points(CONFIG)}
    for path in paths.values():
        model.get_submodule(path)
    assert paths["blocks.2.mlp.post"] == "h.2.mlp.c_proj"
    assert paths["logits"] == "lm_head"


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("*", [name for name, _, _ in EXPECTED]),
        ("logits", ["logits"]),
        (["logits", "embed"], ["embed", "logits"]),  # the order is the model's, not the caller's
        ("blocks.*.attn.pattern", [f"blocks.{layer}.attn.pattern" for layer in range(3)]),
        ("blocks.[02].resid_p*", [f"blocks.{layer}.resid_{p}" for layer in (0, 2) for p in ("pre", "post")]),
        (["blocks.1.attn.?", "blocks.1.attn.q"], [f"blocks.1.attn.{letter}" for letter in "qkvz"]),
        ("blocks.*.hook_mlp_out", [f"blocks.{layer}.mlp.out" for layer in range(3)]),
        (["hook_embed", "embed", "*embed"], ["embed", "pos_embed"]),
    ],
)
def test_globs(patterns, expected):
    assert resolve(patterns, CONFIG) == expected


@pytest.mark.parametrize(
    ("name", "what", "how"),
    [
        ("blocks.1.attn.patern", "'blocks.1.attn.patern'", "blocks.1.attn.pattern"),
        ("blocks.0.hook_resid_prae", "'blocks.0.hook_resid_prae'", "blocks.0.hook_resid_pre"),
        ("blocks.3.attn.q", "3 layers", "0 to 2"),
        ("blocks.17.*", "layer 17", "0 to 2"),
        ("zzz*", "'zzz*'", "points(model.config)"),
        ("", "''", "points(model.config)"),
    ],
)
@pytest.mark.parametrize("ask", [find, resolve])
def test_an_unknown_point_is_an_error_with_the_nearest(ask, name, what, how):
    with pytest.raises(PointError) as caught:
        ask(name, CONFIG)
    assert what in caught.value.what
    assert how in caught.value.how
    assert len(str(caught.value).splitlines()) == 2
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, KeyError)


WHERE = {
    "output": "output of `{}`",
    "input": "input of `{}`",
    "heads": "input of `{}`, split into heads",
    "argument": "argument of `{}.core`",
    "inside": "inside the explicit `{}.core`",
    "scale": "from the input of `{}`",
    "product": "computed when read, with the weight of `{}`",
}


def reference_table() -> str:
    """The table of points in Markdown, for docs/internals.md."""
    lines = ["| point | shape | taken from | edit | also called | meaning |", "|---|---|---|---|---|---|"]
    for tap in taps.TAPS:
        place = WHERE[tap.where].format(tap.module)
        alias = f"`{tap.alias}`" if tap.alias else ""
        shape_of = tap.shape.replace(" ", ", ")
        edit = "yes" if tap.editable else "no"
        lines.append(f"| `{tap.name}` | ({shape_of}) | {place} | {edit} | {alias} | {tap.meaning} |")
    return "\n".join(lines) + "\n"


@pytest.mark.skipif(not PAGE.is_file(), reason="needs the checkout that minigpt was installed from")
def test_the_page_of_the_points_is_made_from_their_table():
    assert reference_table() in PAGE.read_text(encoding="utf-8")


def test_the_reference_table_has_every_row():
    header, rule, *lines = reference_table().splitlines()
    assert rule == "|---" * header.count(" | ") + "|---|"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {6}
    names = [name for name, _, _ in BEFORE] + [f"blocks.{{l}}.{name}" for name, _, _ in BLOCK]
    assert [row[0] for row in cells] == [f"`{name}`" for name in names + [name for name, _, _ in AFTER]]
    assert [row[0] for row in cells if row[3] == "no"] == [
        f"`{name}`"
        for name in ("blocks.{l}.ln_1.scale", "blocks.{l}.attn.head_out", "blocks.{l}.ln_2.scale", "ln_f.scale")
    ]
