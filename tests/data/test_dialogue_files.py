"""Files to dialogues, and dialogues to what trains and what validates. The oracles are written out by hand."""

import itertools
import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.config import DataConfig, DocumentsConfig, RunConfig
from minigpt.data.batches import encode
from minigpt.data.corpora import load_corpus
from minigpt.data.dialogue_files import holds_dialogues, read_dialogues
from minigpt.data.dialogues import Dialogue, examples, speaker
from minigpt.data.documents import Documents, split
from minigpt.data.loaders import document_loader
from minigpt.data.sources import held_out_dialogues, load_data
from minigpt.data.tokens import IGNORED
from minigpt.errors import ConfigError, DataError, DownloadError, InputError, MissingFileError
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def reply(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def jsonl(path: Path, *dialogues: object) -> Path:
    lines = [line if isinstance(line, str) else json.dumps({"messages": line}) for line in dialogues]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def said(dialogue: Dialogue) -> list[tuple[str, str]]:
    return [
        (speaker(message) if message["role"] != "system" else "", message["content"]) for message in dialogue.messages
    ]


# --- The forms --------------------------------------------------------------------------------------------------------


def test_messages(tmp_path):
    path = jsonl(
        tmp_path / "talks.jsonl",
        [{"role": "system", "content": "Be brief."}, user("Hi\r\n\r\nthere "), user("again"), reply("Hello")],
        [{**user("Day?"), "name": "ANN"}, {**reply("Night."), "name": None, "weight": 1}],
        [user("Nobody answers.")],
        "",
    )
    found = read_dialogues(path)
    assert [dialogue.messages for dialogue in found.items] == [
        ({"role": "system", "content": "Be brief."}, user("Hi\nthere\nagain"), reply("Hello")),
        ({**user("Day?"), "name": "ANN"}, reply("Night.")),
    ]
    assert found.validation is None
    assert found.described == (
        f"{path}: 2 dialogues; 1 turn joined to one of the same speaker; 1 dialogue without a reply left "
        "out; fields not read: weight"
    )
    array = written(tmp_path / "talks.json", json.dumps([{"messages": [user("a"), reply("b")]}]))
    assert said(read_dialogues(array).items[0]) == [("USER", "a"), ("ASSISTANT", "b")]
    lines = written(tmp_path / "lines.json", 2 * (json.dumps({"messages": [user("a"), reply("b")]}) + "\n"))
    assert [said(one) for one in read_dialogues(lines).items] == 2 * [[("USER", "a"), ("ASSISTANT", "b")]]
    assert holds_dialogues(str(lines))


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_conversations_of_from_and_value(tmp_path, ending):
    """The form of ShareGPT's talks: human and gpt are the two who speak, and a turn without words is left out."""
    turns = [
        ("system", "Be brief."),
        ("human", "Hi"),
        ("gpt", "Hello"),
        ("gpt", " "),
        ("human", "Tea?"),
        ("gpt", "Yes"),
    ]
    record = {"id": "x_1", "conversations": [{"from": name, "value": text, "weight": 1} for name, text in turns]}
    messages = {"conversations": [user("a"), reply("b")]}
    rows = [json.dumps(record), json.dumps(messages)]
    path = written(tmp_path / f"t.{ending}", f"[{', '.join(rows)}]" if ending == "json" else "\n".join(rows))
    assert holds_dialogues(str(path))
    found = read_dialogues(path)
    assert [dialogue.messages for dialogue in found.items] == [
        ({"role": "system", "content": "Be brief."}, user("Hi"), reply("Hello"), user("Tea?"), reply("Yes")),
        (user("a"), reply("b")),
    ]
    assert found.described == f"{path}: 2 dialogues; 1 speech without words left out; fields not read: id, weight"


@pytest.mark.parametrize(
    "turn",
    [{"from": "tool", "value": "x"}, {"from": ["gpt"], "value": "x"}, {"from": "gpt", "value": 5}, {"from": "gpt"},
     {"value": "x"}, "x", 5, None],
)  # fmt: skip
def test_a_turn_of_another_form_in_conversations_is_named(tmp_path, turn):
    path = written(tmp_path / "t.jsonl", json.dumps({"conversations": [{"from": "human", "value": "Hi"}, turn]}))
    with pytest.raises(DataError, match=r"line 1: message 2 "):
        read_dialogues(path)


def test_personachat(tmp_path):
    def entry(*turns: str, personality: Any = ("i like tea .", "i ski .")) -> dict[str, Any]:
        utterances = [
            {"history": list(turns[: end - 1]), "candidates": ["no", "never", turns[end - 1]]}
            for end in range(2, len(turns) + 1, 2)
        ]
        return {"personality": list(personality), "utterances": utterances}

    content = {
        "train": [entry("hi", "hello", "tea ?", "yes"), entry("__ SILENCE __", "hi first")],
        "valid": [entry("a", "b")],
    }
    found = read_dialogues(written(tmp_path / "personachat.json", json.dumps(content)))
    system = {"role": "system", "content": "i like tea .\ni ski ."}
    assert [dialogue.messages for dialogue in found.items] == [
        (system, user("hi"), reply("hello"), user("tea ?"), reply("yes"))
    ]
    assert found.validation is not None
    assert [dialogue.messages for dialogue in found.validation] == [(system, user("a"), reply("b"))]
    assert "2 dialogues; 1 dialogue without a reply left out" in found.described


PERSONA = {"role": "system", "content": "i like tea .\ni ski ."}
TALK = [user("hi"), reply("hello"), user("tea ?"), reply("yes")]


def persona_rows(*talks: list[dict[str, str]], personality: Any = ("i like tea .", "i ski .")) -> list[dict[str, Any]]:
    """A record for each reply, as truecased PersonaChat has them."""
    return [
        {
            "personality": list(personality),
            "history": [message["content"] for message in talk[:end]],
            "candidates": ["no", talk[end]["content"]],
            "conv_id": number,
            "utterance_idx": end // 2,
        }
        for number, talk in enumerate(talks)
        for end in range(1, len(talk), 2)
    ]


def test_a_record_for_each_reply_is_one_dialogue(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = persona_rows(TALK, [user("hi"), reply("hello there")], [user("hi"), reply("hello")], TALK)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = read_dialogues(path)
    assert [list(dialogue.messages) for dialogue in found.items] == [
        [PERSONA, *TALK], [PERSONA, user("hi"), reply("hello there")], [PERSONA, user("hi"), reply("hello")],
        [PERSONA, *TALK],
    ]  # fmt: skip
    assert found.described.endswith("4 dialogues; fields not read: conv_id, utterance_idx")


@pytest.mark.parametrize(
    ("senders", "classes", "roles"),
    [
        ("abab", {"a": "Human", "b": "Bot"}, "uaua"),
        ("abab", {"a": "Bot", "b": "Human"}, "auau"),
        ("aabb", {"a": "Human", "b": "Human"}, "ua"),
        ("abab", {}, "uaua"),
    ],
)
@pytest.mark.parametrize("year", [2017, 2018])
def test_talks_of_people_with_bots(tmp_path, senders, classes, roles, year):
    """ConvAI2's of 2018 and ConvAI's of 2017; turns of one sender are joined, those without words left out."""
    texts = ["hi", "hello", "tea ?", "yes"]
    if year == 2018:
        turns = [
            {"id": number, "sender": sender, "text": text, "evaluation_score": None}
            | ({"sender_class": classes[sender]} if classes else {})
            for number, (sender, text) in enumerate(zip(senders, texts, strict=True))
        ]
        record = {"dialog": [*turns, turns[0] | {"text": " "}], "bot_profile": ["i like tea .", "i ski ."], "id_": 3}
        silence, unread = {**record, "dialog": []}, "id_"
    else:
        turns = [{"userId": sender, "text": text} for sender, text in zip(senders, texts, strict=True)]
        users = [{"id": name, "userType": f"org.pavlovai.communication.{kind}"} for name, kind in classes.items()]
        record = {"thread": [*turns, turns[0] | {"text": ""}], "users": users, "context": "Tea is a drink."}
        silence, unread = {**record, "thread": []}, "context"
    found = read_dialogues(written(tmp_path / "data.json", json.dumps([record, silence])))
    (dialogue,) = found.items
    *system, first = dialogue.messages[: 1 + (year == 2018)]
    assert system == [PERSONA] * (year == 2018)
    said_by = [message["role"][0] for message in dialogue.messages if message["role"] != "system"]
    assert "".join(said_by) == roles
    assert first["content"].startswith("hi")
    assert "\n".join(message["content"] for message in dialogue.messages[len(system) :]) == "\n".join(texts)
    assert "1 speech without words left out; 1 dialogue without a reply left out" in found.described
    assert found.described.endswith(f"fields not read: {unread}")


def test_a_profile_in_single_characters(tmp_path):
    turns = [{"sender": "a", "text": "hi"}, {"sender": "b", "text": "hello"}]
    record = {"dialog": turns, "bot_profile": [list("i like tea ."), list("i ski .")]}
    (dialogue,) = read_dialogues(written(tmp_path / "data.json", json.dumps([record]))).items
    assert list(dialogue.messages) == [PERSONA, *TALK[:2]]


@pytest.mark.parametrize("candidates", ["", "\t\tno|never|yes"])
def test_parlai_lines(tmp_path, candidates):
    text = f"""\
1 your persona: i like tea .
2 your persona: i ski .
3 partner's persona: i sleep .
4 hi\thello{candidates}
5 tea ?\tyes{candidates}
1 __SILENCE__\thi{candidates}
2 hello\\nyou\ttea ?{candidates}
"""
    found = read_dialogues(written(tmp_path / "train_self_original.txt", text))
    assert [list(dialogue.messages) for dialogue in found.items] == [
        [PERSONA, *TALK], [reply("hi"), user("hello\nyou"), reply("tea ?")]
    ]  # fmt: skip
    assert found.described.endswith("2 dialogues; fields not read: partner's persona")
    with pytest.raises(DataError, match=r"x.txt, line 4 is '3 tea', and neither"):
        read_dialogues(written(tmp_path / "x.txt", f"1 hi\thello{candidates}\n2 a\tb{candidates}\n\n3 tea\n"))
    with pytest.raises(DataError, match=r"x.txt, the dialogue in line 2: message 1 of the role user is empty"):
        read_dialogues(written(tmp_path / "x.txt", f"1 hi\thello{candidates}\n1 \tb{candidates}\n"))


def test_a_play(tmp_path):
    play = """\
A TALE

PERSONS

Ann, a queen.

ACT I.

SCENE 1. A wood.

[Enter ANN.]

ANN:
[Aside.] Who comes?

[Enter BEN.]

Speak, or go.

BEN.
A friend.
  And a foe.

BEN.
Well met.

Scene II. A cave.

ANN:
Alone.

SCENE III.

LADY  MAC BEN:
Come.

ANN:

ANN:
I will.
"""
    found = read_dialogues(written(tmp_path / "play.txt", play))
    assert [said(dialogue) for dialogue in found.items] == [
        [("ANN", "Who comes?\nSpeak, or go."), ("BEN", "A friend.\n  And a foe.\nWell met.")],
        [("LADY MAC BEN", "Come."), ("ANN", "I will.")],
    ]
    assert all(message["role"] == "assistant" for dialogue in found.items for message in dialogue.messages)
    for what in (
        "1 turn joined", "1 speech without words", "1 passage that nobody speaks", "1 dialogue without a reply",
        "2 stage directions left out",
    ):  # fmt: skip
        assert what in found.described


def test_a_chat_log(tmp_path):
    log = "2026-01-02\nAnn: hi, see http://a.b\nBen Smith:  hello\nand more\nAnn: bye\n\n"
    log += "Ben Smith: one\nAnn: two: three [not a direction], list[0\n"
    found = read_dialogues(written(tmp_path / "chat.log", log))
    assert [said(dialogue) for dialogue in found.items] == [
        [("Ann", "hi, see http://a.b"), ("Ben Smith", "hello\nand more"), ("Ann", "bye")],
        [("Ben Smith", "one"), ("Ann", "two: three [not a direction], list[0")],
    ]
    assert "1 passage that nobody speaks left out" in found.described


def test_a_folder(tmp_path):
    jsonl(tmp_path / "b.jsonl", [user("a"), reply("b")])
    written(tmp_path / "a.txt", "ANN:\nOne.\n\nBEN:\nTwo.\n")
    written(tmp_path / "c.csv", "text\n")
    found = read_dialogues(tmp_path)
    assert [said(dialogue)[0][0] for dialogue in found.items] == ["ANN", "USER"]
    assert found.described.endswith("; 1 other file not read: .csv")


# --- Plays and logs as people paste them ------------------------------------------------------------------------------

NAMES = ["Ann", "BEN", "Lady Mac Ben", "First Citizen", "Ödön", "李雷"]
BLANKS = ["", " ", "\t", "  \u00a0", "\u2003"]  # behind a colon nobody sees them


@st.composite
def scenes(draw: st.DrawFn) -> list[list[tuple[str, str]]]:
    """Scenes of two turns or more, no two in a row of one speaker, no speaker heard once only."""
    cast = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
    speech = st.lists(st.sampled_from(["I come.", "and so he spake:", "Where, sir?"]), min_size=1, max_size=3)
    found = []
    for _ in range(draw(st.integers(1, 4))):
        order = draw(st.permutations(cast)) * draw(st.integers(1, 2))
        found.append([(name, "\n".join(draw(speech))) for name in order])
    return [*found, *found[:1]]


def joined(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Turns of one speaker in a row as one."""
    return [
        (name, "\n".join(speech for _, speech in group))
        for name, group in itertools.groupby(turns, lambda turn: turn[0])
    ]


@given(scenes=scenes(), blank=st.sampled_from(BLANKS), between=st.sampled_from(["\n", "\n\n"]))
def test_a_play_has_its_turns_whatever_is_blank(tmp_path_factory, scenes, blank, between):
    """Blanks behind the colon, and blank lines between turns, where all is one scene, or between scenes alone."""
    text = "\n\n".join(between.join(f"{name}:{blank}\n{speech}" for name, speech in scene) for scene in scenes)
    found = read_dialogues(written(tmp_path_factory.mktemp("play") / "x.txt", text)).items
    expected = scenes if between == "\n" else [list(itertools.chain(*scenes))]
    assert list(map(said, found)) == list(map(joined, expected))


@given(scenes=scenes(), blank=st.sampled_from(BLANKS), silent=st.data())
def test_a_log_with_messages_without_words(tmp_path_factory, scenes, blank, silent):
    """An empty message is no part of the one before it, and a message may begin below its name."""
    turns = list(itertools.chain(*scenes))
    expected = [(name, "here") for name, _ in turns]
    lines = [f"{name}: here" for name, _ in turns]
    for name, speech in turns:
        how = silent.draw(st.sampled_from(["none", "below", "beside"]))
        lines.append({"none": f"{name}:{blank}", "below": f"{name}:{blank}\n{speech}"}.get(how, f"{name}: {speech}"))
        expected += [(name, speech)] * (how != "none")
    found = read_dialogues(written(tmp_path_factory.mktemp("log") / "x.txt", "\n".join(lines)))
    assert list(map(said, found.items)) == [joined(expected)]
    empty = 2 * len(turns) - len(expected)
    assert (f"; {empty} {'speech' if empty == 1 else 'speeches'} without words left out" in found.described) == bool(
        empty
    )


def test_a_speaker_who_never_begins_a_scene(tmp_path):
    play = "Romeo:\nHello\nJuliet:\nHi\nNurse:\nMadam!\n\nRomeo:\nBye\nJuliet:\nSo long\n"
    found = read_dialogues(written(tmp_path / "x.txt", play)).items
    assert list(map(said, found)) == [
        [("Romeo", "Hello"), ("Juliet", "Hi"), ("Nurse", "Madam!")],
        [("Romeo", "Bye"), ("Juliet", "So long")],
    ]


def test_a_line_that_may_be_a_name_is_said(tmp_path):
    play = "Romeo:\nHello\nJuliet:\nHi\n\nBen:\nBye, and\nthe end:\nSo long\n"
    found = read_dialogues(written(tmp_path / "x.txt", play))
    assert said(found.items[0])[0] == ("Romeo", "Hello\nJuliet:\nHi")
    assert "; 1 line such as 'Juliet:' left in a speech (a blank line above makes it a name)" in found.described


ROLES = {
    "beside": "user: hi\nassistant: hello\nthere\nuser: how\nassistant: fine\n",
    "above": "user:\nhi\nassistant:\nhello\nthere\nuser:\nhow\nassistant:\nfine\n",
    "above, with blank lines": "USER:\nhi\n\nASSISTANT:\nhello\nthere\n\nUSER:\nhow\n\nASSISTANT:\nfine\n\n",
    "both": "user: hi\nassistant:\nhello\nthere\nuser: how\nassistant:\nfine\n",
    "both, with blank lines": "User: hi\n\nAssistant:\n\nhello\n\nthere\n\nUser: how\n\nAssistant:\n\nfine\n",
}


@pytest.mark.parametrize("text", ROLES.values(), ids=ROLES)
def test_a_text_whose_speakers_are_roles_is_messages(tmp_path, text):
    talk = [user("hi"), reply("hello\nthere"), user("how"), reply("fine")]
    (found,) = read_dialogues(written(tmp_path / "x.txt", text)).items
    assert list(found.messages) == talk
    (found,) = read_dialogues(written(tmp_path / "x.txt", re.sub("(?i)user", "Ann", text))).items
    assert [name.lower() for name, _ in said(found)] == ["ann", "assistant"] * 2


def test_a_system_message_stands_above_the_other_roles(tmp_path):
    (found,) = read_dialogues(written(tmp_path / "x.txt", "System: Be brief.\n" + ROLES["beside"])).items
    assert list(found.messages)[:2] == [{"role": "system", "content": "Be brief."}, user("hi")]
    with pytest.raises(DataError, match="message 5 is a system message, and not the first"):
        read_dialogues(written(tmp_path / "x.txt", ROLES["beside"] + "System: Be brief.\n"))


@given(turns=st.integers(4, 9), first=st.booleans(), between=st.sampled_from(["\n", "\n\n"]))
def test_names_beside_some_speeches_and_above_others(tmp_path_factory, turns, first, between):
    """As people write who put what is long below their name."""
    order = [("Ann", " ", "hi"), ("Ben", "\n", "hello\nthere")]
    spoken = [order[(number + first) % 2] for number in range(turns)]
    text = between.join(f"{name}:{blank}{speech}" for name, blank, speech in spoken)
    (found,) = read_dialogues(written(tmp_path_factory.mktemp("both") / "x.txt", text)).items
    assert said(found) == [(name, speech) for name, _, speech in spoken]


@pytest.mark.parametrize(
    "time",
    ["10.{:02} ", "[10:{:02}] ", "(10:{:02}:33) ", "10:{:02} PM ", "2026-01-02 10:{:02} ", "2026-01-02T10:{:02} - ",
     "12/01/2026, 10:{:02} - ", "[12/01/26, 10:{:02}:22\u202fAM] ", "1/2/26, 9:{:02}\u202fa.\xa0m. - "],
)  # fmt: skip
def test_times_before_the_names_of_a_log_are_no_part_of_them(tmp_path, time):
    turns = [("Ann", "hi, at 10:30 - Tom: no"), ("2nd Ben", "hello"), ("Ann", "10:15 works")]
    lines = [time.format(number) + f"{name}: {speech}" for number, (name, speech) in enumerate(turns)]
    found = read_dialogues(written(tmp_path / "x.txt", "\n".join(lines)))
    assert list(map(said, found.items)) == [turns]
    assert found.described.endswith("; 3 times before names left out")


@pytest.mark.parametrize("time", ["12/01/26, 10:{:02} - ", "[12/01/26, 10:{:02}:22\u202fAM] ", "2026-01-02 10:{:02} "])
def test_in_a_log_with_times_who_speaks_stands_behind_one(tmp_path, time):
    """As WhatsApp writes them: messages of several lines, what nobody says, and a mark before a picture."""
    lines = [
        "Ann: buy\nmilk: 2 bottles\n\n \nlater: bread",
        "Ann added Ben",
        "Ben: hello",
        "Ann changed the name",
        "Ann: x",
    ]
    log = "\n".join(time.format(number) + line for number, line in enumerate(lines))
    log += "\n\u200e" + time.format(7) + "Ben: \u200eimage omitted\n" + time.format(8) + "Ben left"
    found = read_dialogues(written(tmp_path / "x.txt", log))
    spoken = [
        ("Ann", "buy\nmilk: 2 bottles\nlater: bread"),
        ("Ben", "hello"),
        ("Ann", "x"),
        ("Ben", "\u200eimage omitted"),
    ]
    assert list(map(said, found.items)) == [spoken]
    assert found.described.endswith("; 3 passages that nobody speaks left out; 4 times before names left out")


def test_a_log_whose_every_message_stands_alone(tmp_path):
    log = "Ann: hi\n\nBen: hello\nand more\n\nAnn: bye\n"
    (found,) = read_dialogues(written(tmp_path / "x.txt", log)).items
    assert said(found) == [("Ann", "hi"), ("Ben", "hello\nand more"), ("Ann", "bye")]


def test_a_script_whose_speeches_stand_beside_the_names(tmp_path):
    script = "SCENE 1. A wood.\n\nANN: hi\n\nBEN: hello\n\nSCENE 2. A cave.\n\nANN: bye\n\nBEN: so soon?\n"
    found = read_dialogues(written(tmp_path / "x.txt", script)).items
    assert list(map(said, found)) == [[("ANN", "hi"), ("BEN", "hello")], [("ANN", "bye"), ("BEN", "so soon?")]]


def test_capitals_with_a_colon_are_the_same_person(tmp_path):
    play = "ROMEO:\nHello there.\n\nJULIET: \nHi.\n\nROMEO : \nBye.\n\nJULIET:\nSo long.\n"
    (found,) = read_dialogues(written(tmp_path / "x.txt", play)).items
    assert [name for name, _ in said(found)] == ["ROMEO", "JULIET"] * 2


# --- Shakespeare ------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.usefixtures("shared_cache")
def test_shakespeare_knows_its_scenes():
    """Everybody knows how these plays and scenes begin, and who speaks at the balcony."""
    found = read_dialogues("shakespeare-dialogues").items
    firsts = [said(dialogue)[0] for dialogue in found]
    for name, words in {
        "First Citizen": "Before we proceed any further",  # Coriolanus
        "GLOUCESTER": "Now is the winter of our discontent",
        "KING RICHARD II": "Old John of Gaunt",
        "SAMPSON": "Gregory, o' my word",
        "WARWICK": "I wonder how the king escaped our hands",
        "ARCHIDAMUS": "If you shall chance, Camillo",
        "DUKE VINCENTIO": "Escalus.",
        "SLY": "I'll pheeze you",
        "Master": "Boatswain!",
        "ROMEO": "He jests at scars",
        "JULIET": "Gallop apace",
    }.items():
        assert any(first[0] == name and first[1].startswith(words) for first in firsts), name
    balcony = next(dialogue for dialogue in found if said(dialogue)[0][1].startswith("He jests at scars"))
    assert {name for name, _ in said(balcony)} == {"ROMEO", "JULIET"}
    assert said(balcony)[-1][1].endswith("His help to crave, and my dear hap to tell.")
    assert not any("KING HENRY VI" in text for dialogue in found for _, text in said(dialogue))


def test_verse_is_dialogue_on_every_machine(monkeypatch):
    """The person spoken to answers, the first to enter speaks first and last, and nobody says that they leave."""

    def no_network(*arguments, **options):
        raise AssertionError("verse needs no download")

    monkeypatch.setattr("minigpt.data.corpora.fetch_url", no_network)
    monkeypatch.setattr("minigpt.data.corpora.fetch_package", no_network)
    text, found = load_corpus("verse").text, read_dialogues("verse-dialogues")
    scenes = text.split("SCENE. ")[1:]
    assert len(found.items) == len(scenes) > 700
    for scene, dialogue in zip(scenes[:200], found.items, strict=False):
        turns = said(dialogue)
        spoken = re.findall(r"^(\w+):\n(.*?)\n\n", scene, re.MULTILINE | re.DOTALL)
        assert turns == spoken
        entered = re.findall(r"\w+", scene.split("Enter ")[1].split(".")[0])
        assert turns[0][0] == turns[-1][0] == entered[0]
    assert not any("Exeunt" in speech for dialogue in found.items for _, speech in said(dialogue))


# --- What cannot be read ----------------------------------------------------------------------------------------------

GOOD = [user("a"), reply("b")]
BROKEN = {
    "a broken line": ([GOOD, '{"messages": ['], "x.jsonl, line 2 is not JSON"),
    "an unknown role": ([GOOD, [user("a"), {"role": "bot", "content": "b"}]], "line 2: message 2 has the role 'bot'"),
    "an empty turn": ([GOOD, GOOD, [user(" \n"), reply("b")]], "line 3: message 1 of the role user is empty"),
    "a late system": ([[user("a"), {"role": "system", "content": "b"}]], "line 1: message 2 is a system message"),
    "no content": ([[user("a"), {"role": "assistant"}]], "line 1: message 2 has None as its content"),
    "no messages": (['{"text": "a", "label": 1}'], "line 1 has no list of messages; its fields: text, label"),
    "no object": (["[1]"], "line 1 holds a JSON list, and no object"),
    "half a character": ([[user("a\ud83d"), reply("b")]], "line 1: message 1 holds half a character"),
    "no reply": ([[user("a")], [reply("b"), user("a")]], "no dialogue in"),
    "nothing": ([], "no dialogue in"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_of_messages_is_refused_with_the_place(tmp_path, kind):
    dialogues, expected = BROKEN[kind]
    with pytest.raises(DataError) as caught:
        read_dialogues(jsonl(tmp_path / "x.jsonl", *dialogues))
    assert expected in caught.value.what


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("x.txt", "All is quiet.\n", "has no dialogue: no line begins with a name and a colon"),
        ("x.txt", "ANN:\nAlone.\n", "no dialogue in"),
        ("x.csv", "text\na\n", "ends in .csv, a form that is not read as dialogues"),
        ("x.parquet", "", "ends in .parquet"),
        ("x.json", "{", "x.json is not JSON"),
        ("x.jsonl", "[]", "x.jsonl, line 1 holds a JSON list, and no object; write each as an object, {...}"),
        ("x.json", "{}", "holds neither an array of dialogues nor PersonaChat"),
        ("x.json", '"a"', "holds neither"),
        ("x.json", '{"train": {}, "valid": 3}', "holds neither"),
        ("x.json", '{"train": [{"utterances": []}]}', "x.json, train 1 is"),
        (
            "x.json",
            '{"valid": [{"personality": 3, "utterances": [{"history": ["a"], "candidates": ["b"]}]}]}',
            "valid 1: its personality is 3",
        ),
        (
            "x.json",
            '{"train": [{"utterances": [{"history": [3], "candidates": ["b"]}]}]}',
            "train 1: message 1 has 3 as its content",
        ),
        ("x.json", '[{"messages": 3}]', "record 1 has no list of messages"),
        ("x.json", '[{"talk": [{"from": "human", "value": "a"}]}]', "its fields: talk"),
        ("x.json", '[{"dialog": [{"text": "a"}]}]', "record 1: turn 1 is {'text': 'a'}"),
        ("x.json", '[{"dialog": [{"sender": [3], "text": "a"}]}]', "record 1: turn 1 is"),
        ("x.json", '[{"dialog": "a"}]', "record 1 is {'dialog': 'a'}, and no dialogue of PersonaChat or ConvAI2"),
        ("x.json", '[{"dialog": [], "bot_profile": "tea"}]', "record 1: its bot_profile is 'tea'"),
        ("x.json", '[{"thread": [], "users": 3}]', "record 1 is"),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused(tmp_path, name, text, expected):
    with pytest.raises(DataError) as caught:
        read_dialogues(written(tmp_path / name, text))
    assert expected in f"{caught.value.what}; {caught.value.how}"


def test_without_a_network_the_dialogues_of_the_complete_works_are_advised(monkeypatch):
    def failing(*arguments, **options):
        raise DownloadError("no network", "look for one")

    monkeypatch.setattr("minigpt.data.corpora.fetch_url", failing)
    with pytest.raises(DownloadError, match="complete-dialogues, through the package index, or verse-dialogues"):
        read_dialogues("shakespeare-dialogues")


def test_a_missing_file():
    with pytest.raises(MissingFileError):
        read_dialogues("nowhere.jsonl")


# --- What trains, and what validates ----------------------------------------------------------------------------------


def configured(path: Path, **documents: Any) -> RunConfig:
    return RunConfig(
        data=DataConfig(source=str(path)), documents=DocumentsConfig(separate="dialogues", **documents), seed=3
    )


lengths = st.lists(st.integers(2, 7), min_size=3, max_size=11)


@given(lengths=lengths, turns=st.integers(1, 5), copies=st.booleans(), val_size=st.integers(1, 2))
def test_no_turn_of_a_held_out_dialogue_is_trained_on(tmp_path_factory, lengths, turns, copies, val_size):
    talks = [
        [(reply if place % 2 else user)(f"dialogue {number}, speech {place}.") for place in range(length)]
        for number, length in enumerate(lengths)
    ]
    path = jsonl(tmp_path_factory.mktemp("talks") / "x.jsonl", *talks, *(talks[:2] if copies else []))
    config = configured(path, turns=turns, val_size=val_size)
    documents = load_data(config)
    assert isinstance(documents, Documents)
    training, validating = split(documents.items, None, val_size, config.seed)

    def dialogues_in(found: list[Any]) -> list[set[str]]:
        return [
            {
                line.split(",")[0]
                for line in (document.prompt + document.text).split("\n")
                if line.startswith("dialogue")
            }
            for document in found
        ]

    assert all(len(of) == 1 for of in dialogues_in(training + validating))  # no example crosses a dialogue
    trained, held_out = (set().union(*dialogues_in(part)) for part in (training, validating))
    assert trained.isdisjoint(held_out)
    assert len(held_out) == val_size
    assert trained | held_out == {f"dialogue {number}" for number in range(len(lengths))}
    assert {document.dialogue for document in training}.isdisjoint(document.dialogue for document in validating)
    replies = sum(length // 2 for length in lengths)
    assert len(training) + len(validating) == replies
    whole = held_out_dialogues(config)
    assert {dialogue.checksum() for dialogue in whole} == {document.dialogue for document in validating}
    assert len(whole) == val_size


@st.composite
def talks_told_again(draw: st.DrawFn) -> list[list[dict[str, str]]]:
    """Talks; some are there again: under another system message, from the other's side, otherwise spaced or with
    capitals, or more than half of them."""
    found = []
    for number in range(draw(st.integers(2, 5))):
        said = [f"talk {number}, speech {place}." for place in range(draw(st.integers(2, 6)))]
        for _ in range(draw(st.integers(1, 3))):
            roles = draw(st.permutations([user, reply]))
            system = draw(st.sampled_from([[], ["Be brief."], ["Be kind."]]))
            part = said[: draw(st.integers(len(said) // 2 + 1, len(said)))]
            part = [text.replace("speech", draw(st.sampled_from(["speech", "speech ", "Speech"]))) for text in part]
            talk = [{"role": "system", "content": text} for text in system]
            found.append([*talk, *(roles[place % 2](text) for place, text in enumerate(part))])
    return draw(st.permutations(found))


@given(talks=talks_told_again(), own_file=st.booleans(), seed=st.integers(0, 5))
def test_a_talk_that_is_told_twice_is_not_parted(tmp_path_factory, talks, own_file, seed):
    """As in PersonaChat: each talk is there for each of the two who talk."""
    folder = tmp_path_factory.mktemp("talks")
    config = configured(jsonl(folder / "x.jsonl", *(talks[1:] if own_file else talks)))
    if own_file:
        config = replace(config, data=replace(config.data, val_data=str(jsonl(folder / "v.jsonl", *talks[:1]))))
    config = replace(config, seed=seed)
    try:
        documents = load_data(config)
        assert isinstance(documents, Documents)
        parts = split(documents.items, None, None, seed, documents.validation)
    except DataError:  # one talk alone, or without a reply
        return
    trained, held_out = (
        {line for document in part for line in re.findall(r"talk \d", document.prompt + document.text)}
        for part in parts
    )
    assert trained
    assert held_out
    assert trained.isdisjoint(held_out)
    whole = held_out_dialogues(config)
    told = "".join(message["content"] for one in whole for message in one.messages)
    assert set(re.findall(r"talk \d", told)) == held_out


def test_a_greeting_that_all_share_joins_nothing(tmp_path):
    greeting = [user("Hello"), reply("How can I help?")]
    talks = [[*greeting, user(f"question {number}"), reply("yes"), user("thanks")] for number in range(5)]
    documents = load_data(configured(jsonl(tmp_path / "x.jsonl", greeting, *talks)))
    assert isinstance(documents, Documents)
    assert len({document.dialogue for document in documents.items}) == 6


def test_a_file_of_its_own_validates_and_none_of_it_is_trained_on(tmp_path):
    shared, other, third = ([user(f"{name}?"), reply(f"{name}!")] for name in "abc")
    config = configured(jsonl(tmp_path / "x.jsonl", shared, other, third))
    val = jsonl(tmp_path / "v.jsonl", shared)
    config = RunConfig(data=DataConfig(source=config.data.source, val_data=str(val)), documents=config.documents)
    documents = load_data(config)
    assert isinstance(documents, Documents)
    training, validating = split(documents.items, None, None, 0, documents.validation)
    assert sorted(document.text for document in training) == ["b!\n", "c!\n"]
    assert [document.text for document in validating] == ["a!\n"]
    assert [said(dialogue)[1][1] for dialogue in held_out_dialogues(config)] == ["a!"]


def test_what_is_left_out_because_it_validates_is_said(tmp_path):
    """A copy of what validates, and the same dialogue from the other side, both in training: nothing of them is lost
    without a word."""
    talks = [[user(f"{name}?"), reply(f"{name}!"), user(f"{name}."), reply(f"{name};")] for name in "abcd"]
    other_side = [{**turn, "role": "assistant" if turn["role"] == "user" else "user"} for turn in talks[0]]
    config = configured(jsonl(tmp_path / "x.jsonl", *talks))
    val = jsonl(tmp_path / "v.jsonl", other_side, talks[1])
    config = replace(config, data=replace(config.data, val_data=str(val)))
    documents = load_data(config)
    assert isinstance(documents, Documents)
    loader = document_loader(documents, "x", config, CHARACTERS)
    assert loader.described[0].endswith(
        "11 replies, each after 4 turns at most; 2 copies of others left out; 2 of dialogues that validate left out"
    )
    assert "4 replies to train on, 3 to validate" in loader.described[1]


CHARACTERS = CharTokenizer.from_text("".join(map(chr, range(10, 127))) + "é")


@pytest.mark.parametrize(
    ("tokenizer", "earlier"), [(CHARACTERS, False), (GPT2Tokenizer(["t h"]), False), (CHARACTERS, True)]
)
@pytest.mark.parametrize("has_system", [False, True])
@pytest.mark.parametrize("has_user", [False, True])
def test_whole_turns_leave_a_prompt_that_is_too_long(tokenizer, earlier, has_system, has_user):
    """The rows and the targets against a loop by hand."""
    system = [{"role": "system", "content": "Here."}] if has_system else []
    turns = [("A", "the first spéech"), ("B", "two"), ("A", "third\nthe third"), ("B", "no. four"), ("A", "five")]
    role = {"A": "assistant", "B": "user" if has_user else "assistant"}
    dialogue = Dialogue((*system, *({"role": role[name], "name": name, "content": text} for name, text in turns)))
    end = tokenizer.encode("\n")[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    for most in range(2, 90):
        expected = []
        for place in range(1, len(turns)):
            name, text = turns[place]
            if role[name] == "user":
                continue
            answer = [*tokenizer.encode(text + "\n"), end]
            for first in range(max(0, place - 3), place):
                prompt = ("Here.\n\n" if has_system else "") + "".join(f"{n}:\n{t}\n\n" for n, t in turns[first:place])
                ids = tokenizer.encode(prompt + f"{name}:\n")
                if len(ids) + len(answer) <= most:
                    break
            if len(ids) < most:
                learned = [IGNORED] * len(ids) + answer
                at = len("Here.\n\n") * has_system
                for number, (n, t) in enumerate(turns[first:place], start=first):
                    at += len(f"{n}:\n")
                    if earlier and number > 0 and role[n] == "assistant":
                        learned[at : at + len(t) + 2] = tokenizer.encode(t + "\n\n")
                    at += len(t) + 2
                expected.append(((ids + answer)[:most], learned[:most]))
        documents = examples(dialogue, turns=3)
        if not expected:
            with pytest.raises(DataError, match="the turn before leaves no room"):
                encode(documents, tokenizer, end, most, 97, earlier)
            continue
        found = encode(documents, tokenizer, end, most, 97, earlier)
        rows = [found.ids[start:stop].tolist() for start, stop in zip(found.starts, found.stops, strict=True)]
        assert rows == [ids for ids, _ in expected]
        for number, (ids, targets) in enumerate(expected):
            x, y = found.example(number)
            assert (x.tolist(), y.tolist()) == (ids[:-1], targets[1:])
        assert found.left_out == len(documents) - len(expected)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("User: {0}\nAssistant: two:\n- one: a\n- two: b\n", "two:\n- one: a\n- two: b"),
        ("User: {0}\nAssistant: yes\nNote: but\n", "yes\nNote: but"),
        ("USER:\n{0}\n\nASSISTANT:\nyes\n\nSteps:\n1. go\n\n", "yes\nSteps:\n1. go"),
        ("USER:\n{0}\n\nASSISTANT:\nyes\nSteps:\n1. go\n\n", "yes\nSteps:\n1. go"),
        ("User: {0}\nAssistant: yes\nA{0}: 1\nB{0}: 2\nC{0}: 3\n", "yes\nA{0}: 1\nB{0}: 2\nC{0}: 3"),
    ],
)
def test_where_user_and_assistant_speak_nobody_else_does(tmp_path, text, answer):
    """A line of an answer with a colon would make all turns replies, so that what the user says is learned."""
    file = tmp_path / "log.txt"
    file.write_text("".join(text.format(f"why {number}") for number in range(5)), encoding="utf-8")
    found = read_dialogues(file)
    (dialogue,) = found.items
    expected = [
        message for number in range(5) for message in (user(f"why {number}"), reply(answer.format(f"why {number}")))
    ]
    assert list(dialogue.messages) == expected
    left = re.search(r"5 lines such as '(Note|Steps):' left in a turn, because most are user's", found.described)
    assert bool(left) == ("Note" in answer or "Steps" in answer)


@pytest.mark.parametrize(
    ("text", "speakers", "turns"),
    [
        ("Ann: why {0}\nBob: so {0}\n" * 3 + "User: {0}\nAssistant: none\n", {"Ann", "Bob", "User", "Assistant"}, 8),
        ("Ann: why\nUser: {0}\nBob: so\nAssistant: yes\n", {"Ann", "Bob", "User", "Assistant"}, 4),
    ],
)
def test_where_others_speak_as_much_they_have_their_turns(tmp_path, text, speakers, turns):
    (tmp_path / "log.txt").write_text("".join(text.format(number) for number in range(5)), encoding="utf-8")
    found = read_dialogues(tmp_path / "log.txt")
    (dialogue,) = found.items
    assert {message["name"] for message in dialogue.messages} == speakers
    assert len(dialogue.messages) == 5 * turns
    assert "because most" not in found.described


def test_what_a_file_would_validate_itself_is_said_where_another_validates(tmp_path):
    def talks(count, name):
        return [{"history": [f"why {name} {number}"], "candidates": ["so"]} for number in range(count)]

    (tmp_path / "x.json").write_text(json.dumps({"train": talks(5, "a"), "valid": talks(3, "b")}), encoding="utf-8")
    other = jsonl(tmp_path / "y.jsonl", [user("when"), reply("now")])
    config = RunConfig(
        data=DataConfig(source=str(tmp_path / "x.json"), val_data=str(other)),
        documents=DocumentsConfig(separate="dialogues"),
    )
    found = load_data(config)
    assert isinstance(found, Documents)
    assert (len(found.items), len(found.validation or [])) == (5, 1)
    assert "8 dialogues; 3 that it would itself validate left out; to validate, " in found.described


@pytest.mark.parametrize("most", [2, 40, 10_000])
def test_a_talk_of_many_turns_is_not_encoded_once_for_each(most):
    """A log without blank lines is one talk of thousands."""
    roles = itertools.cycle(("user", "assistant"))
    dialogue = Dialogue(tuple({"role": next(roles), "content": "the speech"} for _ in range(512)))
    (*_, document) = examples(dialogue, turns=511)
    asked = []

    class Counting(CharTokenizer):
        def encode_array(self, text):
            asked.append(text)
            return super().encode_array(text)

    with suppress(DataError):  # where the last turn alone leaves no room
        encode([document], Counting(CHARACTERS.characters), CHARACTERS.encode("\n")[0], most, 10_000)
    assert len(asked) < 15


def test_what_validates_is_the_last_reply_alone(tmp_path):
    """With earlier replies, a loss is another quantity: those have fewer turns before them."""
    text = "\n\n".join(f"SCENE {number}.\n\nA:\none {number}\n\nB:\ntwo\n\nA:\nthree" for number in range(7))
    config = configured(written(tmp_path / "x.txt", text), learned="replies", val_size=2)
    documents = load_data(config)
    assert isinstance(documents, Documents)
    loaders = [
        document_loader(documents, "x", replace(config, documents=d), CHARACTERS)
        for d in (config.documents, replace(config.documents, learned="reply"))
    ]
    counted = [[int((b.targets != IGNORED).sum()) for b in loader.validation()] for loader in loaders]
    assert counted == [[2 * len("two\n\n" + "three\n\n")]] * 2
    trained = [int((loader.batch(0, 10).targets != IGNORED).sum()) for loader in loaders]
    assert trained == [5 * len("two\n\n" + "two\n\n" + "three\n\n"), 5 * len("two\n\n" + "three\n\n")]


def test_a_message_longer_than_the_context_is_said(tmp_path):
    """Its reply is left out; where it is not the last turn before a reply, it falls out; a longer reply is cut."""
    long = "so " * 30
    path = jsonl(
        tmp_path / "x.jsonl",
        [user(long), reply("left out"), user("and"), reply("this stays"), user("why"), reply(long)],
    )
    data = DataConfig(source=str(path), val_data=str(jsonl(tmp_path / "v.jsonl", [user("held"), reply("out")])))
    config = replace(configured(path), data=data)
    config = replace(config, model=replace(config.model, block_size=61))
    documents = load_data(config)
    assert isinstance(documents, Documents)
    loader = document_loader(documents, "x", config, CHARACTERS)
    assert loader.described[1].startswith(
        "tokens     2 replies to train on, 1 to validate; 1 cut at 61 tokens, 2 with fewer turns before them so that "
        "they fit, 1 left out because the turn before them does not, "
    )


def test_earlier_replies_end_as_the_last_only_with_characters():
    documents = examples(Dialogue(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})), turns=1)
    with pytest.raises(ConfigError, match="learned = 'replies' is for models of characters"):
        encode(documents, GPT2Tokenizer([]), 256, 31, 31, earlier=True)


def test_a_message_with_a_character_that_the_model_does_not_know(tmp_path):
    documents = load_data(configured(jsonl(tmp_path / "x.jsonl", [user("a"), reply("é")])))
    assert isinstance(documents, Documents)
    with pytest.raises(InputError, match="U\\+00E9"):
        encode(documents.items, CharTokenizer("\n:aASERUINT"), 0, 31, 31)


@pytest.mark.parametrize(
    "documents",
    [{"text_field": "text"}, {"prompt_field": "q", "completion_field": "a"}, {"max_characters": 7}, {"keywords": 3}],
)
def test_a_setting_of_other_documents_would_change_nothing(tmp_path, documents):
    path = jsonl(tmp_path / "x.jsonl", GOOD)
    with pytest.raises(ConfigError, match="would change nothing"):
        load_data(configured(path, **documents))


def test_a_log_that_is_one_dialogue_says_what_parts_a_log(tmp_path):
    lines = [f"12/03/20, 21:0{n} - {'Anna' if n % 2 else 'Ben'}: {n} it is" for n in range(7)]
    config = configured(written(tmp_path / "log.txt", "\n".join(lines)))
    with pytest.raises(DataError, match=r"fewer than 2 dialogues that differ.*\n.*a blank line ends each"):
        split(load_data(config).items, None, None, config.seed)
    config = configured(written(tmp_path / "log.txt", "\n".join([*lines[:4], "", *lines[4:]])))
    assert all(split(load_data(config).items, None, None, config.seed))


@pytest.mark.parametrize("changed", [{"turns": 3}, {"learned": "replies"}])
def test_turns_are_for_dialogues(tmp_path, changed):
    path = written(tmp_path / "x.jsonl", '{"text": "a"}')
    with pytest.raises(ConfigError, match="would change nothing"):
        load_data(RunConfig(data=DataConfig(source=str(path)), documents=DocumentsConfig(**changed)))
    with pytest.raises(ConfigError, match="is not read as dialogues"):
        held_out_dialogues(RunConfig(data=DataConfig(source=str(path))))
