"""The corpus `verse`: that its recorded entropy is its entropy, and that it scans."""

import hashlib
import math
import random
import re
import string
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest

from minigpt.data.verse import PHRASES, WORDS, Grammar, Verse, log_prob, write_verse
from minigpt.errors import ConfigError, DataError

LINES = ["greeting", "call", "statement", "clause", "question", "cry", "farewell", "amen"]
FRAME = re.compile(r"SCENE\. .*|Enter .*|Exeunt\.|\w+:|")  # whatever is not a line of verse


@pytest.fixture(scope="module")
def corpus() -> Verse:
    return write_verse()


# ---------------------------------------------------------------- the machinery, on grammars small enough for the hand

# Two alternatives have probabilities in the ratio 1/3 : 1/4, which is 4/7 and 3/7.
AMBIGUOUS = Grammar({"s": "<a>. | <b>.", "a": "x | y"}, {"b": "x"})  # "x." has two derivations


def mean(grammar: Grammar, symbol: str) -> tuple[float, float]:
    """The mean cost in nats and the mean length in characters of the texts of `symbol`: exact, by recursion."""

    @cache
    def means(symbol: str) -> tuple[float, float]:
        nats = length = 0.0
        for probability, body in grammar.rule(symbol):
            slots = [means(slot) for slot in body[1::2]]
            nats += probability * (sum(slot_nats for slot_nats, _ in slots) - math.log(probability))
            length += probability * (sum(slot_length for _, slot_length in slots) + sum(map(len, body[::2])))
        return nats, length

    return means(symbol)


def test_log_prob_adds_up_all_derivations() -> None:
    assert math.exp(AMBIGUOUS.log_prob("s", "x.")) == pytest.approx(4 / 7 * 4 / 7 + 3 / 7)
    assert math.exp(AMBIGUOUS.log_prob("s", "y.")) == pytest.approx(4 / 7 * 3 / 7)
    assert math.exp(AMBIGUOUS.log_prob("s", "x.y.x")) == pytest.approx(37 / 49 * 12 / 49 * 37 / 49)


def test_the_oracle_sees_an_ambiguity() -> None:
    """What the equality of recorded and summed cost is worth: where there are two derivations, it fails."""
    pieces: list[str] = []
    recorded = AMBIGUOUS.write("s", random.Random(0), pieces)
    assert "".join(pieces) == "x."
    assert recorded > -AMBIGUOUS.log_prob("s", "x.") + 0.1
    assert count_texts(AMBIGUOUS, "s") == 2 < count_derivations(AMBIGUOUS, "s") == 3


def test_mean_by_hand() -> None:
    grammar = Grammar({"s": "<w>, <w>/ | oh"}, {"w": "a bbb"})
    word = -(4 / 7 * math.log(4 / 7) + 3 / 7 * math.log(3 / 7))  # also the entropy of the choice in s
    nats, length = mean(grammar, "s")
    assert nats == pytest.approx(word + 4 / 7 * 2 * word)
    assert length == pytest.approx(4 / 7 * (2 * (4 / 7 * 1 + 3 / 7 * 3) + 3) + 3 / 7 * 2)


def test_arguments_and_names() -> None:
    grammar = Grammar({"s": "*<t *>", "t": "*$1"}, {"name": "A B C"})
    bodies = [[body for _, body in grammar.rule(symbol)] for symbol in ("s", "t B")]
    assert bodies == [[["A", "t A", ""], ["B", "t B", ""], ["C", "t C", ""]], [["AB"], ["CB"]]]


# ----------------------------------------------------------------------------------------------- the grammar of verse


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_recorded_cost_is_the_sum_over_all_derivations(seed: int) -> None:
    written = write_verse(seed, 20_000)
    assert -log_prob(written.text) == pytest.approx(written.nats[-1], rel=1e-9)


def test_every_prefix_has_its_exact_cost() -> None:
    """The conditional probabilities of the next character, which `floor` charges, add up to 1 over the alphabet."""
    text = write_verse(seed=3, num_characters=1).text
    alphabet = [*string.ascii_letters, *" \n.,:!?'"]
    for stop in random.Random(0).sample(range(300), 6):
        follow = 0.0
        for character in alphabet:
            try:
                follow += math.exp(log_prob(text[:stop] + character) - log_prob(text[:stop]))
            except DataError:
                continue
        assert follow == pytest.approx(1, rel=1e-9), text[:stop]


def count_derivations(grammar: Grammar, symbol: str) -> int:
    return sum(math.prod(count_derivations(grammar, slot) for slot in body[1::2]) for _, body in grammar.rule(symbol))


@dataclass(frozen=True, eq=False)
class Link:
    """What may be still to come of a text: a piece, and what comes after it (None: the end)."""

    piece: str
    is_slot: bool
    rest: "Link | None"


def count_texts(grammar: Grammar, symbol: str) -> int:
    """How many different texts a symbol has, by the subset construction: all texts read at once, letter by letter.

    A state is the set of all that may be still to come after the letters read so far; where these leave a choice open
    it has several members, and where texts have become equal they share the state.
    """
    link = cache(Link)  # equal chains are one object, so comparing them is cheap

    def chain(body: list[str], rest: Link | None) -> Link | None:
        for place in reversed(range(len(body))):
            if body[place]:
                rest = link(body[place], place % 2 == 1, rest)
        return rest

    @cache
    def steps(todo: Link | None) -> list[tuple[str, Link | None]]:
        """Every next letter, with what is to come after it."""
        if todo is None:
            return [("", None)]
        if not todo.is_slot:
            return [(todo.piece[0], chain([todo.piece[1:]], todo.rest))]
        return [step for _, body in grammar.rule(todo.piece) for step in steps(chain(body, todo.rest))]

    @cache
    def onward(state: frozenset[Link | None]) -> tuple[bool, list[frozenset[Link | None]]]:
        """Whether a text ends here, and the states after each next letter."""
        after: defaultdict[str, set[Link | None]] = defaultdict(set)
        for todo in state:
            for letter, rest in steps(todo):
                after[letter].add(rest)
        return "" in after, [frozenset(after[letter]) for letter in after if letter]

    texts = 0
    reached = Counter({frozenset([chain(["", symbol], None)]): 1})  # state: how many different beginnings lead to it
    while reached:
        longer: Counter[frozenset[Link | None]] = Counter()
        for state, beginnings in reached.items():
            ends, states = onward(state)
            texts += beginnings * ends
            for state in states:
                longer[state] += beginnings
        reached = longer
    return texts


def test_grammar_is_unambiguous() -> None:
    """A proof where the tests above have samples: there are as many texts as derivations.

    First the lines. One rule offers all kinds of them, so no line is of two kinds either, or to two people. Then what
    is made of lines, with a letter for each kind of line (none holds a line's end, so lines cannot run together): the
    speeches of one cast, three names being like any other three. Then the heading.
    """
    kinds = [*(f"{kind} A" for kind in LINES), "greeting B", "call B"]  # the kinds without an argument ignore it
    lines = Grammar(PHRASES | {"line": " | ".join(f"<{kind}>" for kind in kinds)}, WORDS)
    assert count_texts(lines, "line") == count_derivations(lines, "line") > 10**12

    letters = dict(zip(LINES, ["g $1", "l $1", "s", "k", "q", "c", "f $1", "a $1"], strict=True))
    speeches = Grammar(PHRASES | letters, WORDS)
    assert count_texts(speeches, "dialogue A B C") == count_derivations(speeches, "dialogue A B C") > 10**12

    headings = Grammar(PHRASES | {"dialogue": "."}, WORDS)
    assert count_texts(headings, "scene") == count_derivations(headings, "scene") > 10**6


def test_entropy_rate_is_what_a_large_sample_costs(corpus: Verse) -> None:
    """Scenes are independent, so the standard error of nats/characters comes from the scenes' own residuals."""
    nats, length = mean(Grammar(PHRASES, WORDS), "scene")
    rate = nats / length
    costs = [b - a for a, b in pairwise(corpus.nats)]
    lengths = [b - a for a, b in pairwise(corpus.starts)]
    squares = sum((cost - rate * length) ** 2 for cost, length in zip(costs, lengths, strict=True))
    standard_error = math.sqrt(squares) / len(corpus.text)
    assert standard_error < 0.002 * rate  # else the next line says little
    assert abs(corpus.floor() - rate) < 4 * standard_error


# --------------------------------------------------------------------------------------------------------- the floor


def test_floor_of_adjoining_slices_adds_up(corpus: Verse) -> None:
    cuts = sorted({0, len(corpus.text), *random.Random(0).sample(range(len(corpus.text)), 15)})
    parts = [corpus.floor(a, b) * (b - a) for a, b in pairwise(cuts)]
    assert min(parts) >= 0
    assert math.fsum(parts) == pytest.approx(corpus.nats[-1], rel=1e-12)


def test_floor_takes_the_bounds_of_a_slice(corpus: Verse) -> None:
    n = len(corpus.text)
    assert corpus.floor(-100_000) == corpus.floor(n - 100_000, n) == corpus.floor(n - 100_000, n + 5)
    nats, length = mean(Grammar(PHRASES, WORDS), "scene")
    assert corpus.floor(int(0.9 * n)) == pytest.approx(nats / length, rel=0.02)


def test_floor_of_what_must_follow_is_nothing(corpus: Verse) -> None:
    """Every scene begins "SCENE. A "; the place after that is the first thing that is left open."""
    start = corpus.starts[5]
    assert corpus.text.startswith("SCENE. A ", start)
    assert corpus.floor(start, start + 9) == 0
    assert corpus.floor(start + 9, start + 12) > 0


# ---------------------------------------------------------------------------------------------------------- the text


def verse_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if not FRAME.fullmatch(line)]


def syllables(word: str) -> int:
    """Syllables by the groups of vowels, an e that is mute at the end (-e, -es, -ed) not counted."""
    letters = word.lower().replace("'", "")
    groups = len(re.findall("[aeiouy]+", letters))
    mute = re.search(r"[^aeiouyl]e$|[aeiouy]le$|[^aeioucgszx]es$|[^aeioutd]ed$", letters)
    return groups - (mute is not None and groups > 1)


def metre(name: str) -> str:
    """The digits at the end of a rule's name."""
    return name.lstrip(string.ascii_letters)


def scan(phrase: str) -> str:
    """The metre of a phrase as a pattern: the digits of a slot (0 if it has none), a dot for a syllable of the text."""
    phrase = re.sub(r"<(\w+)>('?s)?", lambda slot: f" {metre(slot[1]) or '0'} ", phrase)
    words = re.findall(r"[01]+|[A-Za-z']+", phrase)
    return "".join(word if word.isdigit() else "." * syllables(word) for word in words)


def test_every_phrase_scans() -> None:
    """Slot by slot, so for all lines that can be written: a line has five iambs, a part of one what its name says."""
    parts = {name: metre(name) for name in PHRASES if metre(name)}
    for name, feet in (dict.fromkeys(LINES, "0101010101") | parts).items():
        argument = "<rhyme1>" if name in ("farewell", "amen") else "<name10>"
        for phrase in re.split(r"[|\n]", PHRASES[name].strip()):
            assert re.fullmatch(scan(phrase.replace("$1", argument)), feet), phrase


def test_every_word_has_the_syllables_that_its_list_says() -> None:
    grows = {"hold1", "love1"} | set(re.findall(r"<(\w+)>'?s\b", str(PHRASES)))  # the lists whose words take an -s
    for name, block in WORDS.items():
        words = block.split()
        assert len(set(words)) == len(words), name
        count = {"name": 2}.get(name, len(metre(name)) or 1)
        for word in words if name not in ("site", "near", "mark") else []:  # these stand in headings, which are prose
            assert syllables(word) == count, word
            assert syllables(word + "s") == count or name not in grows, word


def test_every_line_has_ten_syllables_and_a_stop() -> None:
    lines = verse_lines(write_verse(seed=5, num_characters=250_000).text)
    assert len(lines) > 4_000
    for line in lines:
        assert sum(map(syllables, re.findall("[A-Za-z']+", line))) == 10, line
        assert line[0].isupper() or line.startswith("'Tis")
        assert line[-1] in ".,!?"


def test_who_is_spoken_to_is_on_the_stage_and_answers(corpus: Verse) -> None:
    names = set(WORDS["name"].split())
    addressed = 0
    for scene in corpus.text.split("SCENE. ")[1:]:
        cast = re.search(r"Enter (\w+), (\w+) and (\w+)\.", scene)
        assert cast is not None
        assert len(set(cast.groups())) == 3
        turns = re.findall(r"^(\w+):\n(.*?)\n\n", scene, flags=re.MULTILINE | re.DOTALL)
        speakers = [speaker for speaker, _ in turns]
        assert speakers[0] == speakers[-1] == cast[1]
        assert set(speakers) <= set(cast.groups())
        for (_, speech), answerer in zip(turns, speakers[1:], strict=False):
            called = names & set(re.findall(r"\w+", speech))
            assert called <= {answerer}
            addressed += len(called)
    assert addressed > 3_000


def test_rhymes_close_a_scene(corpus: Verse) -> None:
    rhymes = set(re.findall(r"<farewell (\w+)>/<amen (\w+)>", PHRASES["couplet"]))
    ends = re.findall(r"(\w+),\n[^\n]*?(\w+)\.\n\nExeunt\.\n\n", corpus.text)
    assert len(ends) == len(corpus.starts) - 1
    assert set(ends) == rhymes


def test_size_and_letters(corpus: Verse) -> None:
    assert corpus.starts[-2] < 1_000_000 <= len(corpus.text) == corpus.starts[-1]
    assert corpus.text.isascii()
    assert len(set(corpus.text)) <= 65


def test_same_seed_same_bytes() -> None:
    digests = [hashlib.sha256(write_verse(seed, 50_000).text.encode()).hexdigest() for seed in (7, 7, 8)]
    assert digests[0] == digests[1] != digests[2]


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(("seed", "num_characters"), [(0, 0), (0, -5), (-1, 100)])
def test_bad_sizes_and_seeds(seed: int, num_characters: int) -> None:
    with pytest.raises(ConfigError, match=f"seed={seed}, num_characters={num_characters}\n"):
        write_verse(seed, num_characters)


def test_empty_slice(corpus: Verse) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        corpus.floor(10, 10)


def test_foreign_text() -> None:
    assert log_prob("") == 0
    written = write_verse(num_characters=4_000)
    with pytest.raises(DataError, match="character 0,"):
        log_prob("First Citizen:\nBefore we proceed any further, hear me speak.")
    with pytest.raises(DataError, match=f"character {written.starts[-2]},"):
        log_prob(written.text[:-3] + "?")
    assert log_prob(written.text[:-3]) < 0
