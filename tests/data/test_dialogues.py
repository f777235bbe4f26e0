"""Conversations as text and as examples. The oracles: transformers' own template, and a loop by hand."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data.batches import encode
from minigpt.data.dialogues import CHAT_TEMPLATE, END_OF_TURN, Dialogue, Message, examples, render
from minigpt.data.tokens import IGNORED
from minigpt.errors import DownloadError, InputError
from minigpt.formats.tokenizer_files import load_hf_tokenizer, save_hf_tokenizer
from minigpt.tokenizers import END_OF_TEXT, CharTokenizer, GPT2Tokenizer, Tokenizer

VERONA: list[Message] = [
    {"role": "system", "content": "Verona. A street."},
    {"role": "user", "name": "BENVOLIO", "content": "Good-morrow, cousin."},
    {"role": "assistant", "name": "ROMEO", "content": "Is the day so young?"},
    {"role": "user", "name": "BENVOLIO", "content": "But new struck nine."},
    {"role": "assistant", "name": "ROMEO", "content": "Ay me! sad hours seem long.\n\n Was that my father?\r\n"},
]
PLAYED = """\
Verona. A street.

BENVOLIO:
Good-morrow, cousin.

ROMEO:
Is the day so young?

BENVOLIO:
But new struck nine.

ROMEO:
Ay me! sad hours seem long.
 Was that my father?

"""
# Merges across what the template puts beside a text, so that a text which began or ended otherwise would be noticed.
MERGES = ["t h", "th e", "Ċ Ċ", "Ġ the", ": Ċ", ". Ċ", "Ġ Ġ"]


def test_a_conversation_reads_as_a_play_up_to_the_name_of_who_replies():
    assert render(VERONA) == PLAYED + "ROMEO:\n"
    assert render(VERONA, reply_as=" LADY\nCAPULET ") == PLAYED + "LADY CAPULET:\n"
    assert render(VERONA[:2]) == PLAYED[: PLAYED.index("ROMEO")] + "ASSISTANT:\n"
    assert render([{"role": "user", "content": "Hello"}]) == "USER:\nHello\n\nASSISTANT:\n"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": " \n\u2003"}, "of the role user is empty"),
        ({"role": "bot", "content": "a"}, "has the role 'bot'"),
        ({"role": ["user"], "content": "a"}, "has the role ['user']"),
        ({"role": "system", "content": "a"}, "is a system message, and not the first"),
        ({"role": "user"}, "has None as its content"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]}, "as its content, and no text"),
        ({"role": "user", "content": "a", "name": 3}, "has 3 as its name"),
        ("a", "is 'a', and no object"),
    ],
)
def test_what_cannot_be_said_is_refused_with_the_number_of_its_message(message, said):
    with pytest.raises(InputError) as caught:
        render([*VERONA, message])
    assert caught.value.what.startswith("message 6 ")
    assert said in caught.value.what


# --- Our ids are transformers' ----------------------------------------------------------------------------------------

some_text = st.text(max_size=9) | st.lists(
    st.sampled_from(["the", " ", "\n", "\n\n", "\r\n", "\x1c", "\x85", "\u2028", "ROMEO:", "😀"])
).map("".join)
contents = some_text.filter(lambda text: text.strip() and END_OF_TEXT not in text)
names = st.none() | st.sampled_from(["", "ROMEO", "LADY  CAPULET", "the\nking"]) | some_text


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    roles = draw(st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=5))
    found = [{"role": role, "content": draw(contents)} for role in draw(st.sampled_from([[], ["system"]])) + roles]
    for message in found:
        if (name := draw(names)) is not None:
            message["name"] = name
    return found


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Any:
    """A function: what transformers makes of a tokenizer's exported folder."""
    transformers = pytest.importorskip("transformers", reason="needs the extra [dev]")
    numbers = itertools.count()

    def exported(tokenizer: Tokenizer) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(f"exported{next(numbers)}")
        tokenizer = tokenizer.with_added([], {"chat_template": CHAT_TEMPLATE})
        save_hf_tokenizer(tokenizer, folder, block_size=13)
        (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
        return transformers.AutoTokenizer.from_pretrained(folder), folder

    return exported


@pytest.fixture(scope="module")
def gpt2_theirs(theirs) -> Any:
    return theirs(GPT2Tokenizer(MERGES))[0]


@settings(max_examples=300, deadline=None)
@given(messages=conversations(), reply_as=st.just("") | some_text)
def test_byte_pairs_of_the_template_are_those_of_transformers(gpt2_theirs, messages, reply_as):
    tokenizer = GPT2Tokenizer(MERGES)
    ids = gpt2_theirs.apply_chat_template(messages, add_generation_prompt=True, reply_as=reply_as, return_dict=False)
    assert ids == tokenizer.encode(render(messages, reply_as=reply_as))


@pytest.mark.shared
def test_gpt2s_own_ids_of_the_template_are_those_of_transformers(theirs):
    try:
        tokenizer = GPT2Tokenizer()
    except DownloadError as error:
        pytest.skip(f"needs GPT-2's merges: {error.what}")
    there, _ = theirs(tokenizer)

    @settings(max_examples=200, deadline=None)
    @given(messages=conversations(), reply_as=st.just("") | some_text)
    def same(messages, reply_as):
        ids = there.apply_chat_template(messages, add_generation_prompt=True, reply_as=reply_as, return_dict=False)
        assert ids == tokenizer.encode(render(messages, reply_as=reply_as))

    same()


@settings(max_examples=40, deadline=None)
@given(messages=conversations(), reply_as=st.just("") | some_text)
def test_characters_of_the_template_are_those_of_transformers(theirs, messages, reply_as):
    text = render(messages, reply_as=reply_as)
    tokenizer = CharTokenizer.from_text(text)
    ids = theirs(tokenizer)[0].apply_chat_template(
        messages, add_generation_prompt=True, reply_as=reply_as, return_dict=False
    )
    assert ids == tokenizer.encode(text)


def test_a_whole_dialogue_is_closed_there_as_it_is_in_training(theirs):
    for tokenizer, end in ((GPT2Tokenizer(MERGES), None), (CharTokenizer.from_text(PLAYED), "\n")):
        eos_id = tokenizer.eos_token_id if end is None else tokenizer.encode(end)[0]
        document = examples(Dialogue(tuple(VERONA)), turns=4)[-1]
        trained = encode([document], tokenizer, eos_id, max_length=199, block_size=199)
        ids = theirs(tokenizer)[0].apply_chat_template(VERONA, return_dict=False)
        assert ids == trained.ids.tolist()


def test_transformers_refuses_what_we_refuse(gpt2_theirs):
    for message in (
        {"role": "user", "content": " \n"},
        {"role": "bot", "content": "a"},
        {"role": "system", "content": "a"},
        {"role": "user", "content": "a<|endoftext|>"},  # there, it would be read as the token
    ):
        with pytest.raises(Exception, match="message 6 "):
            gpt2_theirs.apply_chat_template([*VERONA, message], add_generation_prompt=True)


def test_the_template_survives_an_export_and_an_import(theirs):
    _, folder = theirs(GPT2Tokenizer(MERGES))
    assert load_hf_tokenizer(folder).settings["chat_template"] == CHAT_TEMPLATE


# --- Dialogues to examples --------------------------------------------------------------------------------------------


@given(
    roles=st.lists(st.sampled_from(["user", "assistant"]), min_size=1, max_size=11),
    has_system=st.booleans(),
    turns=st.integers(0, 7),
)
def test_an_example_is_a_reply_and_the_last_turns_before_it(roles, has_system, turns):
    said = [{"role": role, "content": f"speech {number}.", "name": f"N{number}"} for number, role in enumerate(roles)]
    system = [{"role": "system", "content": "Here."}] if has_system else []
    expected = []
    for number, role in enumerate(roles):
        if number > 0 and role == "assistant":
            prompt = "Here.\n\n" if has_system else ""
            for before in range(len(roles)):
                if number - turns <= before < number:
                    prompt += f"N{before}:\nspeech {before}.\n\n"
            expected.append((prompt + f"N{number}:\n", f"speech {number}.\n"))
    found = examples(Dialogue((*system, *said)), turns)
    assert [(document.prompt, document.text) for document in found] == expected
    assert all(document.whole for document in found)


def test_only_the_reply_and_its_end_are_learned():
    document = examples(Dialogue(tuple(VERONA)), turns=1)[-1]
    tokenizer = CharTokenizer.from_text(PLAYED)
    encoded = encode([document], tokenizer, tokenizer.encode("\n")[0], max_length=199, block_size=199)
    _, targets = encoded.example(0)
    learned = [target for target in targets.tolist() if target != IGNORED]
    assert tokenizer.decode(learned) == "Ay me! sad hours seem long.\n Was that my father?" + END_OF_TURN
