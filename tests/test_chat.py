"""Conversations. The oracles: the template of the turns that fit, computed from nothing, and a chat without a cache."""

import copy
import json
import pickle
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minigpt
import minigpt.chat
from minigpt import Chat, replies
from minigpt.analysis import ablate, edit
from minigpt.config import GPTConfig
from minigpt.data.dialogues import Message, render, with_template
from minigpt.errors import CheckpointError, InputError, MissingFileError, ModelNote, TextNote
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer, Tokenizer
from tests.conftest import random_model

LETTERS = with_template(CharTokenizer("\n :.?!" + string.ascii_letters))
PAIRS = with_template(GPT2Tokenizer(["t h", "th e", "S E", "SE R", ": Ċ", "Ċ Ċ", "a b", "ab a"]))
BLOCK = 127


@pytest.fixture(scope="module", params=[LETTERS, PAIRS], ids=["characters", "pairs"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.param


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    return writer(tokenizer)


def writer(tokenizer: Tokenizer, seed: int = 11) -> GPT:
    """A model that mostly writes letters, and ends a reply now and then."""
    made = random_model(GPTConfig(tokenizer.vocab_size + 3, block_size=BLOCK, n_layer=2, n_head=1, n_embd=7), seed)
    likely = {*tokenizer.encode("abehimnorstu . ! \n\n"), *tokenizer.end_ids}
    with torch.no_grad():
        made.wte.weight[:, 0] = -1.0
        made.wte.weight[sorted(likely), 0] = 1.0
        made.ln_f.bias[0] = 6
    return made


def scripted(monkeypatch: pytest.MonkeyPatch, texts: Sequence[str], tokenizer: Tokenizer = LETTERS) -> list[int]:
    """Let the draws of every chat be these texts, one after the other; gives the seeds with which they are drawn."""
    script, seeds = iter(texts), []

    def stream(model: GPT, ids: list[int], **options: Any):
        seeds.append(options["seed"])

        def written():
            yield from tokenizer.encode(next(script) + "\n\n")

        return written()

    monkeypatch.setattr(minigpt.chat, "stream", stream)
    return seeds


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def reply(text: str) -> Message:
    return {"role": "assistant", "content": text}


# --- what the model reads


def from_nothing(said: list[Message], system: list[Message], turns: int, room: int, tokenizer: Tokenizer) -> list[int]:
    """The ids of the longest end of a conversation that fits, by trying all of them, whole turns at a time."""
    fitting = []
    for first in range(len(said)):
        ids = tokenizer.encode(render([*system, *said[first:]]))
        if len(said) - first <= turns and len(ids) + room - 1 <= BLOCK:
            fitting.append(ids)
    return max(fitting, key=len)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**9), turns=st.integers(1, 7), has_system=st.booleans())
def test_the_prompt_is_the_template_of_the_turns_that_fit(model, tokenizer, seed: int, turns: int, has_system: bool):
    draw = random.Random(seed)
    chat = Chat(
        model, tokenizer, turns=turns, system="The house." if has_system else "", max_new_tokens=13, seed=seed, tries=1
    )
    system = list(chat.messages)
    said: list[Message] = []
    for _ in range(9):
        text = "".join(draw.choices("abehim \n", k=draw.randrange(1, 33))) + "a"
        said.append(user(text))
        expected = from_nothing(said, system, turns, 13, tokenizer)
        shown = chat.say(text)
        assert tokenizer.encode(render(shown.messages)) == expected
        said += [reply(shown.text)] if shown.text else []
        assert chat.messages == [*system, *said]


@pytest.mark.parametrize("turns", [3, 40])
def test_twenty_turns_with_a_cache_are_those_without(model, tokenizer, turns: int, monkeypatch: pytest.MonkeyPatch):
    written: list[list[int]] = []
    made = minigpt.chat.stream

    def recording(*args: Any, **options: Any):
        written.append([])
        for token_id in made(*args, **options):
            written[-1].append(token_id)
            yield token_id

    monkeypatch.setattr(minigpt.chat, "stream", recording)
    draw = random.Random(5)
    plain = Chat(model, tokenizer, turns=turns, system="The house.", max_new_tokens=17, use_cache=False, seed=3)
    cached = Chat(model, tokenizer, turns=turns, system="The house.", max_new_tokens=17, seed=3)
    for number in range(20):
        text = "".join(draw.choices("abehim", k=draw.randrange(1, 9)))
        written.clear()
        draws = len(cached.say(text).draws)
        plain.say(text)
        assert written[:draws] == written[draws:]
        if number % 7 == 6:  # and with what people change
            assert cached.again().text == plain.again().text
            assert cached.edit("ab" + text).text == plain.edit("ab" + text).text
        assert cached.messages == plain.messages
    assert len({message["content"] for message in cached.messages}) > 25  # it did not always say the same


def test_what_was_read_is_not_read_again(monkeypatch: pytest.MonkeyPatch):
    model = writer(LETTERS)
    chat = Chat(model, LETTERS, max_new_tokens=5, turns=8)
    chat.say("a bee")
    held: list[int] = []
    made = minigpt.chat.stream
    monkeypatch.setattr(
        minigpt.chat,
        "stream",
        lambda *args, cache, **options: held.append(cache.longest) or made(*args, cache=cache, **options),
    )
    first = LETTERS.encode(render(chat.messages[:1]))
    chat.say("the house")
    assert held[0] >= len(first)  # the first turn and the name of who replied
    second = LETTERS.encode(render(chat.messages[:3]))
    chat.again()
    assert held[-1] == len(second) - 1  # all of the prompt but its last token, whose logits are needed
    chat.undo()
    chat.say("mum")
    assert held[-1] >= len(first)


def test_who_replies_is_known_when_its_replies_have_fallen_out():
    chat = Chat(writer(LETTERS), LETTERS, turns=1, messages=[{**reply("a"), "name": "NURSE"}], user="BEN", tries=1)
    chat.say("the house")
    assert chat.messages[1:2] == [{"role": "user", "content": "the house", "name": "BEN"}]
    assert [message.get("name") for message in chat.messages] == ["NURSE", "BEN", "NURSE"][: len(chat.messages)]
    kept, ids = chat._prompt([*chat.messages, user("be")])
    assert (kept, LETTERS.decode(ids)) == ([user("be")], "USER:\nbe\n\nNURSE:\n")


def test_a_message_longer_than_the_context_changes_nothing(model, tokenizer):
    chat = Chat(model, tokenizer, max_new_tokens=5)
    chat.say("a")
    before = copy.deepcopy(chat.messages)
    with pytest.raises(InputError, match=r"has \d+ tokens and the names, .* at most 127\nshorten it"):
        chat.say("i" * BLOCK)
    with pytest.raises(InputError, match="is empty"):
        chat.say(" \n")
    with pytest.raises(InputError, match=r"text = 3 .*wrong type"):
        chat.stream(3)  # type: ignore[arg-type]
    for of_text in (chat.say, chat.edit):
        with pytest.raises(InputError, match=r"text = None .*wrong type"):
            of_text(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at most 127"):
        chat.edit("i" * BLOCK)
    assert chat.messages == before
    long = Chat(model, tokenizer, system="i" * BLOCK)
    with pytest.raises(InputError, match=r"with the system message .*\nshorten one of the two"):
        long.say("a")
    assert len(long.messages) == 1


def test_a_message_that_leaves_little_room_is_replied_to_in_that_room():
    chat = Chat(writer(LETTERS), LETTERS, max_new_tokens=20, suppress_tokens=LETTERS.encode("\n"), temperature=2.0)
    around = len(render([user("a")])) - 1
    shown = chat.say("i" * (BLOCK - around))
    assert (shown.best.num_tokens, shown.best.ended) == (1, "length")


# --- what is said, and taken back


def test_history_is_plain_data(monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, ["bee", "house", "the rest"])
    chat = Chat(writer(LETTERS), LETTERS, user="ANN", reply_as="BEN")
    shown = chat.say("a")
    assert (str(shown), shown.faults, len(shown.draws)) == ("bee", (), 1)
    chat.say("the")
    expected = [
        {"role": "user", "content": "a", "name": "ANN"},
        {"role": "assistant", "content": "bee", "name": "BEN"},
        {"role": "user", "content": "the", "name": "ANN"},
        {"role": "assistant", "content": "house", "name": "BEN"},
    ]
    assert json.loads(json.dumps(chat.messages)) == chat.messages == expected
    assert chat.undo() == "the"
    assert chat.messages == expected[:2]
    other = copy.copy(chat)
    chat.say("again")
    assert other.messages == expected[:2]
    assert other._cache is None
    assert "2 messages" in repr(other)
    other.messages.append(7)  # it is a list, and what is in it is seen when it is used
    assert "3 messages, [7]" in repr(other)
    for use in (other.undo, other.again, lambda: other.edit("a"), lambda: other.say("a"), lambda: other.said_last):
        with pytest.raises(InputError, match="message 3 is 7, and no object"):
            use()
    for name in ("undo", "again"):
        with pytest.raises(InputError, match="nothing was said yet"):
            getattr(Chat(writer(LETTERS), LETTERS), name)()


def test_chats_are_equal_if_they_go_on_alike():
    model, chat = writer(LETTERS), None
    for messages in ([], [user("a"), reply("bee")]):
        chat = Chat(model, LETTERS, turns=3, messages=messages, top_k=5)
        assert chat == copy.copy(chat) == Chat(model, LETTERS, turns=3, messages=messages, top_k=5)
        assert chat.history == messages
        changed = copy.copy(chat)
        changed.change(turns=2)
        changed.change(turns=3)
        assert chat == changed
        chat.save("talk.json", overwrite=True)
        loaded = Chat(model, LETTERS, turns=3, top_k=5, seed=7)
        loaded.load("talk.json")
        assert chat == loaded
        for other in (
            Chat(model, LETTERS, turns=3, messages=[*messages, user("the")], top_k=5),
            Chat(model, LETTERS, turns=2, messages=messages, top_k=5),
            Chat(model, LETTERS, turns=3, messages=messages, top_k=5, seed=1),
            Chat(writer(LETTERS), LETTERS, turns=3, messages=messages, top_k=5),
            messages,
        ):
            assert chat != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(chat)
    assert Chat(model, LETTERS, system=None) == Chat(model, LETTERS, system="")


def test_again_takes_the_next_seed_and_edit_replaces(monkeypatch: pytest.MonkeyPatch):
    seeds = scripted(monkeypatch, ["bee", "house", "mouse", "rest"])
    chat = Chat(writer(LETTERS), LETTERS, seed=41)
    chat.say("a")
    assert chat.again().text == "house"
    assert chat.messages == [user("a"), reply("house")]
    assert chat.edit("the").text == "mouse"
    assert chat.messages == [user("the"), reply("mouse")]
    chat.say("a")
    assert seeds == [41, 42, 43, 44]
    assert chat.seed == 45


def test_what_is_changed_holds_from_the_next_reply_on(monkeypatch: pytest.MonkeyPatch):
    chat = Chat(writer(LETTERS), LETTERS, system="a", top_k=5, seed=3)
    chat.messages += [user("the"), reply("bee")]
    chat.change(temperature=0.5, turns=2, system="house")
    assert (chat.decoding.temperature, chat.decoding.top_k, chat.settings["turns"], chat.seed) == (0.5, 5, 2, 3)
    assert chat.messages == [{"role": "system", "content": "house"}, user("the"), reply("bee")]
    chat.change(system="", seed=7)
    assert (chat.messages, chat.seed) == ([user("the"), reply("bee")], 7)
    for wrong in ({"temperature": -1}, {"turns": 0}, {"num_beams": 3}, {"temprature": 1}, {"seed": [1]}):
        before = dict(vars(chat))
        with pytest.raises(InputError):
            chat.change(top_k=7, **wrong)
        assert vars(chat) == before


@pytest.mark.parametrize("name", minigpt.chat.OURS)
def test_what_a_chat_decides_itself(name: str):
    with pytest.raises(InputError, match=f"decides {name} itself"):
        Chat(writer(LETTERS), LETTERS, **{name: 1})


@pytest.mark.parametrize(("given", "meant"), [("turn", "turns"), ("filter", "filters"), ("temprature", "temperature")])
def test_a_misspelt_option_is_answered_with_one_that_a_chat_has(given: str, meant: str):
    with pytest.raises(InputError, match=f"no option '{given}'") as raised:
        Chat(writer(LETTERS), LETTERS, **{given: 3})
    assert raised.value.how == f"did you mean {meant}? help(minigpt.chat.Chat) tells which there are"


def test_an_edited_model_replies_as_if_nothing_had_been_read_before(model, tokenizer):
    """Nor are the keys and values of an edited pass read behind the `with`."""
    chats = [Chat(model, tokenizer, use_cache=use_cache, max_new_tokens=30, seed=4) for use_cache in (True, False)]
    for text in ("the house", "bee"):
        for chat in chats:
            chat.say(text)
            with edit(model, ablate("0.attn"), ablate("0.mlp")):
                chat.say("a mouse")
    assert chats[0].messages == chats[1].messages


# --- streams


def test_pieces_are_the_reply(model, tokenizer):
    chat, other = (Chat(model, tokenizer, seed=2, max_new_tokens=19) for _ in range(2))
    pieces = list(chat.stream("the house"))
    assert len(pieces) > 3
    assert "".join(pieces) == other.say("the house").text == chat.last.text
    assert chat.messages == other.messages
    assert chat.last.text == chat.last.text.strip()


def test_a_stream_that_nobody_reads_changes_nothing(model, tokenizer):
    chat = Chat(model, tokenizer)
    chat.stream("the house")
    assert (chat.messages, chat.seed) == ([], 0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_is_said_next_closes_a_stream_that_is_open(model, tokenizer, use_cache: bool):
    """Two at a time would write into one cache, and the one that ends last would lose what the other said."""
    chat = Chat(model, tokenizer, use_cache=use_cache, max_new_tokens=30)
    pieces = chat.stream("the house")
    begun = next(pieces)
    chat.say("bee")
    assert list(pieces) == []
    assert [message["content"] for message in chat.messages][:3] == ["the house", begun.strip(), "bee"]
    other = Chat(model, tokenizer, use_cache=False, max_new_tokens=30, messages=chat.messages[:2], seed=1)
    other.say("bee")
    assert chat.messages == other.messages
    pieces = chat.stream("a mouse")
    next(pieces)
    assert chat.undo() == "a mouse"
    assert list(pieces) == []
    assert chat.messages == other.messages


def test_what_was_read_stays_what_it_was(monkeypatch: pytest.MonkeyPatch):
    """Neither a filter that works on what it is given, nor whoever edits the conversation later, changes it."""

    def careless(reply: str, messages: Any) -> str:
        for message in messages:
            message["content"] = message["content"].lower()
        messages.clear()
        return ""

    scripted(monkeypatch, ["Bee", "House"])
    chat = Chat(writer(LETTERS), LETTERS, filters=[careless], system="Verona")
    chat.say("A mouse")
    shown = chat.say("The END")
    contents = ["Verona", "A mouse", "Bee", "The END", "House"]
    assert [message["content"] for message in chat.messages] == contents
    chat.messages[1]["content"] = "a house"
    assert [message["content"] for message in shown.messages] == contents[:-1]


def test_a_filter_cannot_speak_into_its_own_reply(monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, ["bee"])
    chat = Chat(writer(LETTERS), LETTERS, filters=[lambda reply, messages: str(chat.say("a"))])
    with pytest.raises(InputError, match="a reply is just being written"):
        chat.say("the")
    assert chat.messages == []


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_what_was_said_until_it_was_stopped_is_kept(how: str, monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, ["the  rest of the house", "bee"])
    chat = Chat(writer(LETTERS), LETTERS)
    pieces = chat.stream("a")
    shown = [next(pieces) for _ in range(4)]
    if how == "close":
        pieces.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt())
    assert "".join(shown) == "the  r"
    assert chat.messages == [user("a"), reply("the  r")]
    assert chat.last.best.ended == "interrupted"
    assert chat.say("the").text == "bee"


def test_stopped_between_two_tries_the_best_is_kept(monkeypatch: pytest.MonkeyPatch):
    def stop(draw: minigpt.chat.Draw) -> None:
        raise KeyboardInterrupt

    scripted(monkeypatch, ["the house is a house", "bee"])
    chat = Chat(writer(LETTERS), LETTERS, filters=replies.USUAL)
    with pytest.raises(KeyboardInterrupt):
        list(chat.stream("the house is a house", on_failed=stop))
    assert chat.messages[-1] == reply("the house is a house")


def test_stopped_before_the_first_word_there_is_no_reply(monkeypatch: pytest.MonkeyPatch):
    def stream(*args: Any, **options: Any):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(minigpt.chat, "stream", stream)
    chat = Chat(writer(LETTERS), LETTERS)
    with pytest.raises(KeyboardInterrupt):
        chat.say("a")
    assert chat.messages == [user("a")]
    scripted(monkeypatch, ["bee"])
    assert chat.again().text == "bee"
    assert chat.messages == [user("a"), reply("bee")]


# --- replies that fail


def test_a_reply_that_fails_is_drawn_again(monkeypatch: pytest.MonkeyPatch):
    seeds = scripted(monkeypatch, ["the house is a house", "", "Ben is a bee."])
    chat = Chat(writer(LETTERS), LETTERS, filters=replies.USUAL, seed=5, tries=4)
    told: list[str] = []
    pieces = list(chat.stream("the house is a house", on_failed=lambda draw: told.extend(draw.faults)))
    assert told == ["echoes what it replies to", "is empty"]
    assert "".join(pieces) == "the house is a houseBen is a bee."
    assert chat.messages[-1] == reply("Ben is a bee.")
    assert [draw.text for draw in chat.last.failed] == ["the house is a house", ""]
    assert (chat.last.faults, len(chat.last.draws), seeds) == ((), 3, [5, 6, 7])


def test_nobody_sees_a_reply_that_fails_unless_asked_for(monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, ["the house is a house", "Ben is a bee."])
    chat = Chat(writer(LETTERS), LETTERS, filters=replies.USUAL)
    assert list(chat.stream("the house is a house")) == ["Ben is a bee."]


def test_if_all_fail_the_best_is_said_with_what_failed(monkeypatch: pytest.MonkeyPatch):
    loud = lambda reply, messages: "shouts" if reply.isupper() else ""  # noqa: E731
    scripted(monkeypatch, ["ABE", "A", "", "BE"])
    chat = Chat(writer(LETTERS), LETTERS, filters=[loud, replies.length(most=2)], tries=4)
    shown = chat.say("a")
    assert (shown.text, shown.faults) == ("A", ("shouts",))  # the first with one fault; the empty one is the last
    assert [draw.faults for draw in shown.failed] == [
        ("shouts", "has 3 characters, more than 2"), ("shouts",), ("is empty",), ("shouts",)
    ]  # fmt: skip
    assert chat.messages == [user("a"), reply("A")]


def test_an_empty_reply_is_no_message(monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, ["", " ", "bee"])
    chat = Chat(writer(LETTERS), LETTERS, tries=2)
    assert (chat.say("a").text, chat.last.faults) == ("", ("is empty",))
    assert chat.messages == [user("a")]
    chat.say("the")
    assert chat.messages == [user("a"), user("the"), reply("bee")]


def test_what_is_not_drawn_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, ["", "bee"])
    chat = Chat(writer(LETTERS), LETTERS, strategy="greedy", tries=5)
    assert len(chat.say("a").draws) == 1


def test_a_filter_that_breaks_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, ["bee"])
    chat = Chat(writer(LETTERS), LETTERS, filters=[lambda reply, messages: None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="which is no text"):
        chat.say("a")
    assert (chat.messages, chat.seed) == ([], 0)


# --- models and files


def test_a_model_that_was_never_trained_to_reply_says_so_once():
    plain = CharTokenizer(LETTERS.characters)
    with pytest.warns(ModelNote, match="not trained on dialogues"):
        chat = Chat(writer(plain), plain)
    chat.say("a")
    chat.change(turns=2)
    chat.say("the")  # no further note, which would be an error here


def test_a_template_of_somebody_else_is_refused_by_name():
    theirs = LETTERS.with_added((), {"chat_template": "{{ messages }}"})
    with pytest.raises(InputError, match=r"has a chat template of its own, '\{\{ messages"):
        Chat(writer(LETTERS), theirs)


def test_a_special_token_that_is_spelled_is_text():
    chat = Chat(writer(PAIRS), PAIRS, max_new_tokens=3)
    with pytest.warns(TextNote, match="is read as text"):
        shown = chat.say("<|endoftext|>")
    assert PAIRS.eos_token_id not in PAIRS.encode(render(shown.messages))
    chat.say("a")  # which is not said again


def test_a_conversation_is_saved_and_loaded(monkeypatch: pytest.MonkeyPatch):
    scripted(monkeypatch, ["b\u00e9e", "house"], CharTokenizer(LETTERS.characters + "\u00e9"))
    tokenizer = with_template(CharTokenizer(LETTERS.characters + "\u00e9"))
    chat = Chat(writer(tokenizer), tokenizer, system="a", user="ANN", reply_as="BEN", seed=3)
    chat.say("a")
    chat.save("talk.json")
    text = Path("talk.json").read_text(encoding="utf-8")
    assert "\u00e9" in text
    other = Chat(chat.model, tokenizer, top_k=3)
    other.load("talk.json")
    assert (other.messages, other.seed, other.decoding.top_k) == (chat.messages, 4, 3)
    assert other.say("the").messages[-1]["name"] == "ANN"
    with pytest.raises(InputError, match=r"talk\.json is there already"):
        other.save("talk.json")
    assert Path("talk.json").read_text(encoding="utf-8") == text
    other.save("talk.json", overwrite=True)
    assert json.loads(Path("talk.json").read_text(encoding="utf-8"))["messages"] == other.messages


def test_a_folder_is_no_file_of_a_conversation(tmp_path: Path):
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is a folder\nname a file in it"):
            Chat(writer(LETTERS), LETTERS).save(tmp_path, overwrite=overwrite)


STRANGE = "\u20ac"  # which the tokenizer does not know


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"system": STRANGE}, "message 1 of the role system: "),
        ({"messages": [user("a"), reply(STRANGE)]}, "message 2 of the role assistant: "),
        ({"messages": [{**user("a"), "name": STRANGE}]}, "message 1 of the role user: "),
        ({"user": STRANGE}, "user: "),
        ({"reply_as": STRANGE}, "reply_as: "),
    ],
)
def test_what_nobody_could_reply_to_is_refused_before_anybody_speaks(arguments: dict[str, Any], where: str):
    with pytest.raises(InputError, match=f"^{where}the text has characters outside"):
        Chat(writer(LETTERS), LETTERS, **arguments)
    chat = Chat(writer(LETTERS), LETTERS)
    with pytest.raises(InputError, match=f"^{where}"):
        chat.change(**arguments)
    assert chat == Chat(chat.model, LETTERS)


GOOD = {"version": 1, "user": "", "reply_as": "", "seed": 3, "messages": [user("a")]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**GOOD, "version": 2}, "is of version 2\nname a file"),
        ({"messages": []}, "is no conversation that minigpt saved"),
        ({**GOOD, "messages": 3}, "is no list of messages"),
        ({**GOOD, "messages": [{"role": "bot", "content": "a"}]}, "message 1 has the role 'bot'"),
        ({**GOOD, "seed": "a"}, "seed = 'a'"),
        ({**GOOD, "user": 3}, r"^talk\.json: user = 3"),
        ({**GOOD, "messages": [user(STRANGE)]}, r"^talk\.json: message 1 of the role user: the text has characters"),
        *(
            ({other: value for other, value in GOOD.items() if other != name}, rf"^talk\.json has no {name}\n")
            for name in ("user", "reply_as", "seed", "messages")
        ),
        (
            [GOOD],
            "list, and no object: it is no conversation that minigpt saved\nname a file that was saved by a minigpt",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_loses_nothing(content: Any, message: str):
    chat = Chat(writer(LETTERS), LETTERS, messages=[user("the"), reply("bee")])
    before = dict(vars(chat))
    Path("talk.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises((InputError, CheckpointError), match=message):
        chat.load("talk.json")
    with pytest.raises(MissingFileError):
        chat.load("missing.json")
    assert vars(chat) == before


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda chat: pickle.loads(pickle.dumps(chat))], ids=["deep", "pickle"]
)
def test_a_chat_that_has_spoken_is_copied_whole(copied):
    chat = Chat(writer(LETTERS), LETTERS, max_new_tokens=7)
    chat.say("the house")
    open_still = chat.stream("is")
    next(open_still)
    other = copied(chat)
    assert (other.messages, other.seed) == (chat.messages, chat.seed)
    open_still.close()
    chat.undo()
    other.seed = chat.seed
    assert other.say("her").text == chat.say("her").text
