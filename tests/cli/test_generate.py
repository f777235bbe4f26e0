"""`minigpt generate` as people type it: what it says of mistakes, what it shows, and that both are true."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minigpt.cli import generate as command
from minigpt.cli.main import answer as run
from minigpt.config import GPTConfig
from minigpt.decoding.generate import generate
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.speculative import PromptLookup
from minigpt.errors import InputError, named, named_ids
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer
from tests.conftest import random_model

BLOCK_SIZE = 19
LETTERS = "\nabcdefghijklmnopqrstuvwxyz :.EMOR"
CharModel = tuple[GPT, CharTokenizer]


def small_model(tokenizer: Tokenizer, seed: int = 3) -> GPT:
    return random_model(GPTConfig(tokenizer.vocab_size, block_size=BLOCK_SIZE, n_layer=2, n_head=1, n_embd=7), seed)


@pytest.fixture
def characters(monkeypatch: pytest.MonkeyPatch) -> CharModel:
    """What --model, whatever it names, and --draft load: a random model of characters."""
    tokenizer = CharTokenizer.from_text(LETTERS)
    pair = small_model(tokenizer), tokenizer
    monkeypatch.setattr(command, "load", lambda *_: pair)
    draft = SimpleNamespace(load_for_text=lambda **_: (small_model(tokenizer, seed=4), tokenizer))
    monkeypatch.setattr(command, "open_source", lambda spec: draft)
    return pair


@pytest.fixture
def refused(failing: Callable[[list[str]], str]) -> Callable[..., str]:
    """The two lines about a mistake in the flags, which name no field and no token of the library."""

    def check(*flags: str) -> str:
        err = failing(["generate", *flags])
        assert re.findall(r"[a-z]+_[a-z_]+", err.replace("block_size", "")) == []
        assert re.search(r"\[\d", err) is None, "ids mean nothing to who types texts"
        return err

    return check


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """What a sound command writes: to standard output, to standard error."""

    def check(*flags: str) -> tuple[str, str]:
        assert run(["generate", *flags]) == 0
        return capsys.readouterr()

    return check


@pytest.fixture
def completions(written: Callable[..., tuple[str, str]]) -> Callable[..., list[dict[str, Any]]]:
    """The completions that --json tells of."""
    return lambda *flags: json.loads(written(*flags, "--json")[0])["completions"]


# --- mistakes ----------------------------------------------------------------------------------------------------

BEAM = ("--strategy", "beam", "--num-beams", "3")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--temperature", "-1e3"], ["--temperature -1000.0 is out of range", "--temperature must be"]),
        (["--top-k", "-1"], ["--top-k -1"]),
        (["--top-k", "9" * 400], ["--top-k 999", "below 2**63"]),
        (["--repetition-penalty", "1e-40"], ["--repetition-penalty 1e-40", "from 0.001 to 1000"]),
        (["--stop", ""], ["--stop '' cannot be used", "--stop must be a string of at least one character"]),
        (["--stop", "o", "--stop", ""], ["--stop '' cannot be used"]),
        (["--seed", "-1"], ["--seed -1 is out of range"]),
        (["--seed", str(2**63 - 1), "--prompt", "me"], [f"--seed {2**63} is out of range"]),  # the second prompt's
        (["--batch-size", "0"], ["--batch-size 0", "at least 1"]),
        (["--min-new-tokens", "2"], ["--min-new-tokens 2 puts off", "this model has none"]),
        (["--length-penalty", "2"], ["--length-penalty 2.0 concerns beams", '--strategy "beam" with --num-beams']),
        (["--early-stopping", "yes"], ["--early-stopping yes concerns beams", "leave --early-stopping out"]),
        ([*BEAM, "--top-p", "0.5"], ["--top-p 0.5 shapes a draw", "--strategy 'beam' draws nothing"]),
        ([*BEAM, "--num-return-sequences", "4"], ["--num-return-sequences 4 is more than --num-beams 3"]),
        (["--bias", "e", "1e39"], ["--bias of 'e' is 1e+39", "or -inf to ban"]),
        (["--bias", "Rome", "nan"], ["--bias of 'Rome' is nan"]),
        (["--bias", "e", "2", "--bias", "m", "1", "--bias", "e", "-2"], ["--bias 'e' is given twice"]),
        (["--bias", "e", "much"], ["--bias ... much is no number"]),
        (["--ban", "#"], ["--ban '#': the text has characters", "'#' (U+0023)"]),
        (["--ban", ""], ["--ban '' is no token"]),
        (["--require", "me"], ["--require ['me'] concerns beams"]),
        ([*BEAM, "--require", "me", "--ban", "e"], ["--require wants 'me', but --ban forbids 'e' in it"]),
        (["--ban", "e", "--bias", "me", "3"], ["--bias of 'me' would have no effect: --ban forbids 'e'"]),
        ([*BEAM, "--require", "me.", "--stop", "."], ["--require wants 'me.', but --stop '.' ends the text"]),
        ([*BEAM, "--require", "Romeo"], ["the required sequences hold 5 tokens, but the prompt gets 4"]),
        ([*BEAM, "--require", "oeoe", "--no-repeat-ngram-size", "2"], ["all of --require", "--no-repeat-ngram-size"]),
        ([*BEAM, "--num-return-sequences", "3", "--require", "mmmm"], ["--num-beams 3 found 1", "raise --num-beams"]),
        ([*BEAM, "--draft", "lookup"], ["with --num-beams 3 a row may go on from another", "leave --draft out"]),
        (["--draft", "lookup", "--draft-tokens", "0"], ["--draft-tokens 0 guesses nothing"]),
        (
            ["--draft", "lookup", "--num-return-sequences", "2", "--ablate", "0.0"],
            ["--ablate", "--draft", "--num-return-sequences 2", "leave one of the three out"],
        ),
        (
            ["--draft", "lookup", "--batch-size", "2", "--prompt", "me", "--ablate", "0.0"],
            ["--ablate", "--draft", "--batch-size 2 grow apart", "leave one of the three out"],
        ),
        (["--draft-tokens", "3"], ["--draft-tokens would change nothing without --draft"]),
        (
            ["--max-new-tokens", "99"],
            ["the prompt of length 5 and --max-new-tokens 99", "lower --max-new-tokens to 15"],
        ),
        (["--prompt", "a" * 20], ["prompt 1 of length 20 alone does not fit block_size = 19", "--on-overflow"]),
        (["--prompt", "a#"], ["prompt 1: the text has characters", "'#' (U+0023)"]),
    ],
)
def test_a_mistake_is_told_in_flags_and_texts(
    characters: CharModel, refused: Callable[..., str], flags: list[str], parts: list[str]
) -> None:
    length = () if "--max-new-tokens" in flags else ("--max-new-tokens", "4")
    err = refused("--prompt", "ROMEO", *length, *flags, "--json")
    for part in parts:
        assert part in err


def test_texts_that_look_like_parts_of_an_error(characters: CharModel, refused: Callable[..., str]) -> None:
    """They are shown as they were typed."""
    flags = ("--prompt", "R", "--max-new-tokens", "99", *BEAM, "--require")
    Path("prompt 7.txt").write_text("a" * 20, encoding="utf-8")
    assert "line 1 of prompt 7.txt of length 20" in refused("--prompts-file", "prompt 7.txt")
    for text in ("prompt 7", "[999]", "top_k = 3"):
        tokenizer = CharTokenizer.from_text(LETTERS + text)
        ids = tokenizer.encode(text)
        error = InputError(
            f"{named('prompt 0')} wants {named_ids(ids)}, but {named('stop', text)} ends it",
            f"leave {named('stop')} out",
        )
        assert error.what == f"prompt 0 wants {ids}, but stop = {text!r} ends it"
        words = {named_ids(ids): repr(text), "stop": "--stop", "top_k": "--top-k"}
        with pytest.raises(InputError) as caught, command._in_words(words, ["the prompt"]):
            raise error
        assert caught.value.how == "leave --stop out"
        assert caught.value.what == f"the prompt wants {text!r}, but --stop {text!r} ends it"
    assert "--top-k 5 shapes a draw" in refused(*flags, "m", "--stop", "prompt 7", "--top-k", "5")


def test_an_unknown_character_is_found_in_its_line(characters: CharModel, refused: Callable[..., str]) -> None:
    Path("openings.txt").write_text("ROMEO\n\n  \nwh?t\n", encoding="utf-8")
    assert "line 4 of openings.txt: the text has characters" in refused("--prompts-file", "openings.txt")
    assert "error: the text has characters" in refused("--prompt", "wh?t"), "a prompt alone needs no name"


def test_a_prompt_too_long_for_a_later_batch_costs_no_work(
    characters: CharModel, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(characters[0], "trunk", lambda idx, cache: pytest.fail("worked before checking"))
    Path("openings.txt").write_text("ROMEO\n" * 4 + "a" * 20 + "\n", encoding="utf-8")
    err = refused("--prompts-file", "openings.txt", "--batch-size", "2")
    assert "line 5 of openings.txt of length 20 alone does not fit block_size = 19" in err


def test_a_late_error_names_the_prompt_of_its_batch(characters: CharModel, refused: Callable[..., str]) -> None:
    """The pair that is required stands in the fourth prompt already, and no pair may come twice."""
    Path("openings.txt").write_text("ROMEO\nab\nme\nhome\n", encoding="utf-8")
    flags = ("--max-new-tokens", "3", *BEAM, "--require", "om", "--no-repeat-ngram-size", "2", "--batch-size", "3")
    assert "no continuation of line 4 of openings.txt was found" in refused("--prompts-file", "openings.txt", *flags)


def test_an_error_amid_a_stream_begins_a_line(characters: CharModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--prompt", "R", "--max-new-tokens", "60", "--no-repeat-ngram-size", "1",
                "--on-overflow", "crop"]) == 2  # fmt: skip
    out, err = capsys.readouterr()
    assert sorted(out) == sorted(LETTERS + "\n"), "every character once, and a line's end"
    assert out.endswith("\n")
    assert err.startswith("error: every token is banned; the options that ban are --no-repeat-ngram-size\n")


# --- what is shown -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["-inf", "-1e3", "-1E+3", "-.5e4", "-1000", "-INF"])
def test_a_negative_number_in_any_form_is_no_flag(
    characters: CharModel, completions: Callable[..., Any], number: str
) -> None:
    flags = ("--prompt", "ROMEO", "--strategy", "greedy", "--max-new-tokens", "4")
    (plain,) = completions(*flags)
    first = plain["completion"][0]
    (biased,) = completions(*flags, "--bias", first, number)
    (banned,) = completions(*flags, "--ban", first)
    assert first not in biased["completion"]
    assert biased["token_ids"] == banned["token_ids"]


def test_stopping_where_the_block_is_full_is_up_to_each_prompt(
    characters: CharModel, completions: Callable[..., Any]
) -> None:
    """A long prompt leaves the short ones their length, also where nobody asked for one."""
    prompts = ("--prompt", "a" * 19, "--prompt", "ROMEO", "--prompt", "m")
    for flags in ((), ("--on-overflow", "stop"), (*BEAM, "--on-overflow", "stop")):
        found = completions(*prompts, *flags)
        assert [len(row["token_ids"]) for row in found] == [BLOCK_SIZE + 1] * 3
        assert {row["finish_reason"] for row in found} == {"context"}
    crop = completions(*prompts, "--on-overflow", "crop")
    assert [len(row["token_ids"]) for row in crop] == [219, 205, 201]
    assert {row["finish_reason"] for row in crop} == {"length"}


def test_a_full_block_is_told_where_it_ends_the_text(characters: CharModel, written: Callable[..., Any]) -> None:
    told = "the context is full"
    for flags, full in (
        ((), True),
        (("--on-overflow", "stop"), True),
        (("--on-overflow", "stop", "--max-new-tokens", "99"), True),
        (("--max-new-tokens", "15"), False),  # fits to the last position
        (("--on-overflow", "stop", "--max-new-tokens", "15"), False),
        (("--on-overflow", "crop", "--max-new-tokens", "30"), False),
    ):
        assert (told in written("--prompt", "ROMEO", *flags)[1]) == full, flags


@pytest.mark.parametrize("draft", ["lookup", "smaller"])
def test_what_a_draft_was_good_for_is_told(characters: CharModel, written: Callable[..., Any], draft: str) -> None:
    model, tokenizer = characters
    flags = ("--prompt", "ROMEO", "--strategy", "greedy", "--max-new-tokens", "14", "--draft", draft)
    out, err = written(*flags)
    result = json.loads(written(*flags, "--json")[0])
    assert list(result) == ["completions", "tokens_per_second", "num_drafted", "num_accepted"]
    assert result["completions"][0]["text"] + "\n" == out
    assert f"; {result['num_accepted']} of {result['num_drafted']} drafted tokens accepted]" in err
    assert 0 < result["num_drafted"] >= result["num_accepted"]
    if draft == "lookup":
        ids = tokenizer.encode("ROMEO")
        alone = generate(model, [ids], strategy="greedy", max_new_tokens=14, draft=PromptLookup())
        assert (result["num_drafted"], result["num_accepted"]) == (alone.num_drafted, alone.num_accepted)
    twice = json.loads(written(*flags, "--prompt", "ROMEO", "--batch-size", "1", "--json")[0])
    assert twice["num_drafted"] == 2 * result["num_drafted"], "over all batches"


def test_a_score_says_what_it_is(characters: CharModel, written: Callable[..., Any]) -> None:
    flags = ("--prompt", "ROMEO", "--max-new-tokens", "4")
    for more, name, meaning in (
        (("--num-return-sequences", "2"), "log-probability", ""),
        (BEAM, "score", "[score: the sum of the filtered log-probabilities / length ** 1]"),
        (
            ("--num-beams", "2", "--length-penalty", "0.5"),
            "score",
            "[score: the sum of the filtered log-probabilities / length ** 0.5]",
        ),
    ):
        score = json.loads(written(*flags, *more, "--json")[0])["completions"][0]["score"]
        out, err = written(*flags, *more)[:2]
        assert f"--- {name} {score:.3f}, ended by: length ---" in out
        assert meaning in err


def test_a_prompt_that_comes_twice_gets_two_texts(characters: CharModel, completions: Callable[..., Any]) -> None:
    """Each has a seed of its own, counted from --seed, and that seed gives its text to it alone too."""
    found = completions("--prompt", "R", "--prompt", "R", "--prompt", "me", "--max-new-tokens", "9", "--seed", "4")
    assert found[0]["token_ids"] != found[1]["token_ids"]
    (alone,) = completions("--prompt", "R", "--max-new-tokens", "9", "--seed", "5")
    assert alone["token_ids"] == found[1]["token_ids"]


class Bar:
    """In the place of the progress bar: remembers what it was told."""

    def __init__(self, total: int, disable: bool | None, **_: Any) -> None:
        self.total, self.disable, self.n = total, disable, 0
        self.steps: list[int] = []
        bars.append(self)

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, steps: int = 1) -> None:
        self.n += steps
        self.steps.append(self.n)


bars: list[Bar] = []


@pytest.mark.parametrize("flags", [(), BEAM, ("--draft", "lookup", "--strategy", "greedy")])
@pytest.mark.parametrize("size", ["8", "3"])
def test_progress_is_shown_inside_a_batch_too(
    characters: CharModel,
    written: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    flags: Any,
    size: str,
) -> None:
    monkeypatch.setattr(command, "tqdm", Bar)
    bars.clear()
    written("--prompt", "R", "--prompt", "me", "--prompt", "o", "--max-new-tokens", "7", "--batch-size", size, *flags)
    (bar,) = bars
    assert bar.disable is None, "shown on a terminal, and nowhere else"
    assert bar.total == bar.n == 3 * 7, "tokens"
    assert bar.steps == sorted(bar.steps)
    assert len(bar.steps) > 4, "it moves while a batch is under way"


def test_an_end_of_sequence_can_be_put_off(monkeypatch: pytest.MonkeyPatch, completions: Callable[..., Any]) -> None:
    tokenizer = GPT2Tokenizer(["l a", "la t"])
    model = small_model(tokenizer)
    with torch.no_grad():
        model.wte.weight[tokenizer.eos_token_id] *= 9  # it comes soon
    monkeypatch.setattr(command, "load", lambda *_: (model, tokenizer))
    lengths = {}
    for least in ("0", "6"):
        found = completions("--prompt", "la", "--num-return-sequences", "9", "--min-new-tokens", least, "--temperature",
                            "2", "--max-new-tokens", "9")  # fmt: skip
        lengths[least] = min(len(row["token_ids"]) for row in found if row["finish_reason"] == "eos")
    assert lengths["0"] < 1 + 6 + 1 <= lengths["6"]


def test_what_a_review_found(characters: CharModel, refused: Callable[..., str], written: Callable[..., Any]) -> None:
    """Half a character as a stop, a ban that --unknown skip would change, a prompt that fills the context."""
    assert "of whole characters" in refused("--prompt", "ROMEO", "--stop", "\udcff")
    with pytest.raises(InputError, match="has characters that the model does not know"):
        command._ids(CharTokenizer(LETTERS, unknown="skip"), "--ban", "R\U0001f600")
    model, _ = characters
    full = "ROMEO" * (model.config.block_size // 5 + 1)
    out, err = written("--prompt", full, "--on-overflow", "stop")
    assert out == full + "\n"
    assert "the context is full" in err


def test_a_seed_is_a_number() -> None:
    with pytest.raises(InputError, match=r"seed = True is of the wrong type \(bool\)"):
        DecodingOptions(seed=True)


# --- without a part ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["0.0", "1.mlp", "0.attn"])
def test_a_text_without_a_part_is_that_of_a_model_whose_part_writes_nothing(characters, completions, written, part):
    """The oracle has no hooks: its weights are gone. Prompts of several lengths are continued one by one."""
    prompts = ("--prompt", "ROMEO:", "--prompt", "to b", "--strategy", "greedy", "--max-new-tokens", "9")
    with_it = completions(*prompts)
    without = completions(*prompts, "--ablate", part)
    streamed = written("--prompt", "to b", "--strategy", "greedy", "--max-new-tokens", "9", "--ablate", part)[0]
    assert completions(*prompts) == with_it  # nothing of it stays
    layer, name = part.split(".")
    block = characters[0].h[int(layer)]
    projection = block.mlp.c_proj if name == "mlp" else block.attn.c_proj
    with torch.no_grad():
        projection.weight.zero_()
        if name != "0":  # a head of the one head there is: the bias is nobody's
            projection.bias.zero_()
    expected = completions(*prompts)
    assert [row["token_ids"] for row in without] == [row["token_ids"] for row in expected]
    assert [row["token_ids"] for row in without] != [row["token_ids"] for row in with_it]
    assert streamed.rstrip("\n") == expected[1]["text"]


def test_a_part_that_is_not_there_is_told_before_anything_is_written(characters, failing):
    assert "there is no point 'head 1'" in failing(["generate", "--prompt", "to", "--ablate", "head 1"])
    assert "there is no head 3" in failing(["generate", "--prompt", "to", "--ablate", "0.3"])


EXAMPLES = ["--examples", "pairs.tsv", "--input-label", "EM:", "--output-label", "RO:", "--strategy", "greedy"]


@pytest.mark.usefixtures("pairs")
def test_examples_come_before_each_query_and_the_answer_ends_at_an_empty_line(
    monkeypatch: pytest.MonkeyPatch, written: Callable[..., tuple[str, str]]
) -> None:
    """A model that continues the pattern for ever: its answer, and nothing of the next example."""
    tokenizer = CharTokenizer.from_text(LETTERS)
    model = random_model(GPTConfig(tokenizer.vocab_size, block_size=89, n_layer=1, n_head=1, n_embd=7), 3)
    answer = tokenizer.encode(" de\n\nEM: f")
    monkeypatch.setattr(command, "load", lambda *_: (model, tokenizer))
    seen: list[dict[str, Any]] = []

    def pattern(model: GPT, prompts: list[list[int]], **options: Any) -> Any:
        seen.append({"prompts": [tokenizer.decode(ids) for ids in prompts], "stop": options["stop"]})
        outs = [[*ids, *answer] for ids in prompts]
        return command.Generation(outs, [0.0] * len(outs), ["stop"] * len(outs), 0, 0)

    monkeypatch.setattr(command, "generate", pattern)
    out = json.loads(written(*EXAMPLES, "--prompt", "mer", "--prompt", "ile", "--stop", "x", "--json")[0])
    shown = "EM: a\nRO: b\n\nEM: {}\nRO:"
    assert seen == [{"prompts": [shown.format("mer"), shown.format("ile")], "stop": ("x", "\n\n")}]
    assert [one["completion"] for one in out["completions"]] == [" de", " de"]
    written(*EXAMPLES, "--prompt", "mer", "--prompt", "ile", "--instruction", "do so:", "--json")
    assert seen[-1]["prompts"][0] == "do so:\n\n" + shown.format("mer")


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of one example, in the working folder."""
    (tmp_path / "pairs.tsv").write_text("a\tb\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("pairs", "characters")
def test_examples_without_a_query_and_labels_without_examples(refused: Callable[..., str]) -> None:
    assert "the prompt is blank, and --examples pairs.tsv shows answers" in refused(*EXAMPLES)
    assert "prompt 1 is blank" in refused(*EXAMPLES, "--prompt", "a", "--prompt", " ")
    assert "holds the separator" in refused(*EXAMPLES, "a\n\nb")
    assert "the prompt with its --examples of length" in refused(*EXAMPLES, "a")
    for flag in ("--instruction", "--input-label", "--output-label"):
        assert f"{flag} would change nothing without --examples" in refused("a", flag, "x")
