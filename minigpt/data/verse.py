"""The built-in corpus: scenes of blank verse, written by a grammar that knows the probability of every character.

A machine without a network still needs a corpus, and a training report says more if it can tell how far the loss is
above the lowest possible one. Nobody knows the entropy of Shakespeare; the entropy of this corpus can be computed.

**The grammar** is `PHRASES` and `WORDS`. A phrase is text with slots, `<name arguments>`, and a slot is filled by an
alternative of the rule of that name. A rule lists its alternatives from the most to the least frequent: the k-th has a
probability in proportion to 1 / (k + 2), which is Zipf's law in Mandelbrot's form. `/` ends a line, as in verse that is
quoted in prose; `$1`, `$2`, `$3` are the rule's arguments, and `*` is any name that is not among them. The digits in a
rule's name are its metre, 1 a stressed syllable and 0 an unstressed one: `<adj10> <noun1>` may be "gentle night". No
rule leads back to itself, so every recursion below ends.

**The floor.** Each choice has a known probability, and the grammar is unambiguous: a text has only one derivation. So
-log p(text) is the sum of -log p(choice), in nats. This is the loss of a perfect model, which knows the grammar and
remembers the text from its first character. There are two such numbers per character:

- `Verse.floor` is the loss on *this* text, or on a slice of it: compare a validation loss with this one.
- the entropy rate is the loss in the long run. Scenes are independent, so it is E[nats] / E[characters] of one scene.

On new text no model has a lower loss on average (Gibbs' inequality). On a short slice a model may be lower by luck, and
on text that it has memorised it will be; therefore there is a validation split. A model whose context does not reach
back to the beginning of the scene cannot quite reach the floor, because it may not know who is on the stage.
"""

import math
import random
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from minigpt.errors import ConfigError, DataError

# One alternative a line, or several separated by |. A verse is five iambs: test_verse.py checks each of them.
PHRASES = {
    # A scene and its speeches. The person spoken to answers; the first to enter speaks first and last.
    "scene": "SCENE. A <site> <near> the <mark>, <hour>./Enter <first>",
    "first": "*, <second *>",
    "second": "* and <third $1 *>",
    "third": "*.//<dialogue $1 $2 *>",
    "dialogue": """
        <meeting $1 $2 $3><round $1 $2 $3><round $1 $2 $3><parting $1>
        <meeting $1 $2 $3><round $1 $2 $3><round $1 $2 $3><round $1 $2 $3><parting $1>
        <meeting $1 $2 $3><round $1 $2 $3><parting $1>
        <meeting $1 $2 $3><round $1 $2 $3><round $1 $2 $3><round $1 $2 $3><round $1 $2 $3><parting $1>
    """,
    "meeting": "$1:/<greeting $2>/<verses>//<turn $2 $1> | $1:/<greeting $3>/<verses>//<turn $3 $1>",
    "round": """
        <turn $1 $2><turn $2 $1> | <turn $1 $3><turn $3 $1>
        <turn $1 $2><turn $2 $3><turn $3 $1> | <turn $1 $3><turn $3 $2><turn $2 $1>
    """,
    "turn": "$1:/<speech $2>//",
    "parting": "$1:/<verses>/<couplet>//Exeunt.//",
    "speech": "<call $1>/<verses> | <verses> | <verses>/<call $1> | <call $1>",
    "verses": "<verse> | <verse>/<verse> | <verse>/<verse>/<verse>",
    "verse": "<statement> | <clause>/<statement> | <question> | <cry>",
    # Lines.
    "greeting": """
        Well met, <good> $1, on this <adj10> <hour1>.
        What news, <good> $1, of <the> <noun101>?
        Good morrow, $1: <passion1> be with thy <home1>.
        All hail, <good> $1, <nature1> of <passion1> and <passion1>!
    """,
    "call": """
        <Good> $1, thou hast <done1> <the> <noun101>.
        I <love1> thee, $1, as I <love1> <the> <noun1>.
        <Good> $1, <verb1> <the> <noun101> <late01>.
        And wilt thou, $1, <verb1> <the> <noun101>?
        Then hear me, $1: <passion1> is <adj1> as <passion1>.
        No, $1, no: <the> <noun1> <shall> <verb1> <the> <noun1>.
        Speak, $1: is <the> <noun1> of <passion1> so <adj1>?
        O $1, $1, <mock1> me not with <passion1>!
    """,
    "statement": """
        <The> <noun101> <shall> <verb1> <the> <noun101>.
        Thou art <the> <noun1> that <verb1>s <the> <noun101>.
        I <love1> <the> <noun1>, and <love1> <the> <noun101>.
        <The> <noun1> that <verb1>s <the> <noun1> <shall> <fade1> <late01>.
        My <passion10> is as <adj1> as any <nature1>.
        There is no <noun1> so <adj1> but it must <fade1>.
        'Tis not <the> <noun1> that <verb1>s <the> <noun101>.
        To <love1> <the> <noun1> is but to <love1> <the> <noun1>.
        <The> <noun1> is <adj1>, and yet <the> <noun1> is <adj1>.
        Thy <passion10> long hath <done1> <the> <noun101>.
        The <nouns1> are <adj1>, the <nouns1> are <adj1> and <adj1>.
        And I have <done1> <the> <noun101> <late01>.
        Bring me <the> <thing1>, and I will <verb1> <the> <person1>.
        For all that <verb1>s <the> <noun1> <shall> <fade1> <late01>.
        Let <passion10> <fade1>, and let <the> <noun1> <yield01>.
        No <noun1> so <adj1>, no <noun1> so <adj1> as mine.
    """,
    "clause": """
        <Before01> <the> <noun1> <shall> <verb1> <the> <noun101>,
        If <passion1> <shall> <verb1> <the> <noun101> <late01>,
        When <adj10> <nouns1> <betray01> <the> <noun101>,
        As one that <love1>s <the> <noun1> and <love1>s <the> <noun1>,
        While <adj10> <nouns1> and <adj10> <nouns1> <yield01>,
    """,
    "question": """
        Where is <the> <noun1> that <verb1>s <the> <noun101>?
        What <person1> <shall> <verb1> <the> <noun101> <late01>?
        How shall I <verb1> <the> <noun1>, or <verb1> <the> <noun1>?
        Is this the <noun1> that <verb1>s <the> <noun101>?
        Who knows if <passion1> <shall> <verb1> <the> <noun101>?
    """,
    "cry": """
        O <adj10> <noun1>! O <adj1> and <adj10> <noun1>!
        Away with <passion1>, away with <adj10> <passion1>!
        Alas, <the> <noun1>! Alas, <the> <noun101>!
        O, would <the> <noun1> might <verb1> <the> <noun101>!
    """,
    "couplet": """
        <farewell night>/<amen light> | <farewell day>/<amen way> | <farewell noon>/<amen moon>
        <farewell morn>/<amen thorn> | <farewell spring>/<amen king> | <farewell fall>/<amen wall>
        <farewell dawn>/<amen lawn> | <farewell sleep>/<amen deep>
    """,
    "farewell": """
        Then part we here, and meet again ere $1,
        Enough: <the> <noun101> <shall> <fade1> ere $1,
        Come, gentle friends: <the> <noun1> <shall> <fade1> ere $1,
    """,
    "amen": """
        And <verb1> <the> <noun101> <beneath01> the $1.
        So <fade1>s <the> <noun101> <beneath01> the $1.
        And <passion1> <shall> <verb1> us all <beneath01> the $1.
    """,
    # Parts of lines.
    "noun101": """
        <adj10> <noun1> | <person10>'s <thing1> | <thing1> of <passion1> | <noun1> that <fade1>s
        <nature1> of <passion1> | <person10>'s <passion1>
    """,
    "noun1": "<thing1> | <nature1> | <passion1> | <person1>",
    "nouns1": "<nature1>s | <thing1>s | <person1>s",
    "verb1": "<hold1> | <love1>",
    "late01": "at last | in vain | alone | once more | too soon | by night | unseen | with tears | tonight | for love",
    "hour": "at night | by day | at dawn | at dusk | by moonlight | in a storm | in the snow | after the battle",
}

# Nouns and verbs take a plain -s and do not grow by a syllable.
WORDS = {
    "name": "Hector Edith Robin Helen Martin Clara Roland Judith Conrad Nora Walter Isbel Alban Tamsin Osric Lambert",
    "site": "wood hall field garden street chamber chapel tent meadow ruin vineyard tavern cavern courtyard dungeon",
    "near": "near by behind before beyond",
    "mark": "castle sea palace river abbey harbour bridge forest mill market lighthouse border",
    "The": "The My Thy Our This His Her That",
    "the": "the my thy our this his her that",
    "Good": "Good Sweet Dear Kind Brave Fair Poor Wise Young Proud False Bold",
    "good": "good sweet dear kind brave fair poor wise young proud false bold",
    "shall": "shall must may will doth can should would might could",
    "Before01": "Before Until Although Because Unless",
    "beneath01": "beneath upon before behind below",
    "hour1": "night day morn eve dawn",
    "home1": "house home heart kin name land hearth roof bed",
    "mock1": "mock tempt blame chide wound haunt bind shame",
    "love1": "love fear know trust serve mourn seek scorn crave blame dread need greet doubt",
    "nature1": """
        star sea wind moon sun night day storm stone cloud tide wave field hill tree flame dawn stream wood bird shore
        shade thorn lark frost root lamb hawk spark swan lake dove bough hound cliff vale gale brook crow reed moor wren
    """,
    "thing1": """
        crown heart sword hand ring word lamp door song ship bell gate throne eye wall book grave road sail chain oath
        vow key tear tomb cup harp brow path tale shield drum veil spear lip robe flag roof cheek lute loom blade
    """,
    "passion1": """
        love hope grief fear death time joy pride faith truth shame rage fate peace hate grace sleep doubt youth scorn
        trust war guilt mirth care wrath age want wealth sin wit
    """,
    "passion10": """
        sorrow honour mercy fury fortune pity beauty envy reason silence glory folly wonder duty terror treason virtue
        fancy patience malice longing anger laughter justice courage vengeance
    """,
    "person1": """
        king queen friend lord knight fool son maid ghost foe bride guest priest heir duke slave saint monk lad earl
        clown groom bard squire nun clerk host
    """,
    "person10": """
        father mother soldier beggar lover brother sister captain shepherd daughter stranger pilgrim tyrant sailor widow
        hunter traitor lady master servant scholar cousin steward miller
    """,
    "adj10": """
        gentle bitter golden silent ancient weary broken noble silver hollow tender heavy hidden humble secret burning
        mortal sleeping frozen faithful barren restless fallen idle simple sudden sullen patient merry fatal shining
        weeping stubborn crimson honest jealous mighty winter holy sober modest wanton empty stormy summer tranquil
        guilty subtle purple worthy
    """,
    "adj1": """
        sweet dark bright deep cold fair true strong wild proud pale false old strange soft young kind swift sharp wise
        poor brave stern warm fierce rich dear calm bold pure mild keen grave quick rare dull vain plain vast harsh
    """,
    "hold1": """
        hold keep break find bring guard wake hide bear steal drown bind burn save lead mock crown heal prove tame wound
        guide shake spare haunt move warn calm tempt slay stain feed mend claim grant strike hunt cheer shun lift name
        weigh veil spurn quell chide weave sway tear
    """,
    "fade1": """
        fall fade sleep burn die shine wake sing weep turn break wait fail bloom live speak bend sink reign grow bow
        stand dream wane bleed yield roam glow drift swoon
    """,
    "done1": """
        lost found kept bound slain won broke healed drowned sought burned tamed crowned wronged stained held torn
        shamed led felt blessed saved taught mourned
    """,
    "betray01": """
        betray forget adorn forgive command conceal destroy obey reveal defend enchant consume deceive redeem adore
        surround pursue subdue inflame ensnare admire torment restrain
    """,
    "yield01": """
        return depart arise endure awake remain decay despair rejoice repent prevail relent descend withdraw lament
        abide revive consent expire
    """,
}


class Grammar:
    """A weighted grammar in the notation above: it writes text, and computes the probability of a text."""

    def __init__(self, phrases: Mapping[str, str], words: Mapping[str, str]) -> None:
        """Read the tables; a rule is parsed when it is first used."""
        self._alternatives = {name: re.split(r"\s*[|\n]\s*", phrases[name].strip()) for name in phrases}
        self._alternatives |= {name: words[name].split() for name in words}
        self._rules: dict[str, list[tuple[float, list[str]]]] = {}

    def rule(self, symbol: str) -> list[tuple[float, list[str]]]:
        """The alternatives for the slot `<symbol>`, each a probability and a body.

        In a body, literals (`body[::2]`) and slots (`body[1::2]`) alternate; it begins and ends with a literal, which
        may be empty.
        """
        if symbol not in self._rules:
            name, *arguments = symbol.split()
            texts = self._alternatives[name]
            for number, argument in enumerate(arguments, start=1):
                texts = [text.replace(f"${number}", argument) for text in texts]
            if any("*" in text for text in texts):
                others = [other for other in self._alternatives["name"] if other not in arguments]
                texts = [text.replace("*", other) for text in texts for other in others]
            bodies = [re.split("<(.*?)>", text.replace("/", "\n")) for text in texts]
            # fsum, because sum() rounds differently in Python 3.11 and 3.12, and a seed must give one text on both.
            total = math.fsum(1 / (k + 2) for k in range(1, len(bodies) + 1))
            self._rules[symbol] = [(1 / (k + 2) / total, body) for k, body in enumerate(bodies, start=1)]
        return self._rules[symbol]

    def write(self, symbol: str, rng: random.Random, pieces: list[str]) -> float:
        """Append a random text of `symbol` to `pieces`; return -log of its probability, in nats."""
        left = rng.random()  # if rounding leaves a rest of it after the loop, the last alternative is taken
        for probability, body in self.rule(symbol):  # noqa: B007 - leaves the loop with the alternative that is chosen
            left -= probability
            if left < 0:
                break
        nats = -math.log(probability)
        for place, piece in enumerate(body):
            if place % 2:
                nats += self.write(piece, rng, pieces)
            else:
                pieces.append(piece)
        return nats

    def log_prob(self, symbol: str, text: str) -> float:
        """The log-probability that texts of `symbol`, one after another without end, begin with `text`.

        It does not know the choices that `write` made, and sums over all derivations. So if it equals minus the number
        that `write` returned, the text has no second derivation.
        """
        reached = {0: 0.0}  # where a text of `symbol` may start, and the log-probability of all before it
        while (start := min(reached)) < len(text):
            before = reached.pop(start)
            for end, log_p in self._ends(symbol, text, start, {}).items():
                _add(reached, end, before + log_p)
            if not reached:
                raise DataError(
                    f"what starts at character {start}, {text[start : start + 40]!r}, is no {symbol} of this grammar",
                    "pass text as write_verse wrote it, from the start of a scene",
                )
        return reached[len(text)]

    def _ends(
        self, symbol: str, text: str, start: int, memo: dict[tuple[str, int], dict[int, float]]
    ) -> dict[int, float]:
        """The ends of the texts of `symbol` that match `text` from `start` on, each with its log-probability.

        A derivation that reaches the end of `text` matches, whatever comes after it, and is not followed further.
        """
        if start == len(text):
            return {start: 0.0}
        if (symbol, start) not in memo:
            ends: dict[int, float] = {}
            for probability, body in self.rule(symbol):
                reached = {start: math.log(probability)}
                for place, piece in enumerate(body):
                    onward: dict[int, float] = {}
                    for here, before in reached.items():
                        if place % 2:
                            for end, log_p in self._ends(piece, text, here, memo).items():
                                _add(onward, end, before + log_p)
                        elif text[here : here + len(piece)] == piece[: len(text) - here]:
                            _add(onward, min(here + len(piece), len(text)), before)
                    reached = onward
                for end, log_p in reached.items():
                    _add(ends, end, log_p)
            memo[symbol, start] = ends
        return memo[symbol, start]


def _add(table: dict[int, float], place: int, log_p: float) -> None:
    """Add a probability to the one that `table` holds for `place`, both as logarithms."""
    held = table.get(place)
    table[place] = log_p if held is None else max(held, log_p) + math.log1p(math.exp(-abs(held - log_p)))


_GRAMMAR = Grammar(PHRASES, WORDS)


@dataclass(frozen=True)
class Verse:
    """A corpus of whole scenes, and its cost: the sum of a perfect model's losses, in nats.

    Attributes:
        text: the corpus.
        starts: where each scene starts, and last where the text ends.
        nats: the cost of the text before each of `starts`, summed choice by choice while it was written.
    """

    text: str
    starts: tuple[int, ...]
    nats: tuple[float, ...]

    def cost(self, stop: int) -> float:
        """-log p(text[:stop]) in nats, exact for every `stop`: the part of a cut scene is computed by `log_prob`."""
        scene = bisect_right(self.starts, stop) - 1
        return self.nats[scene] - log_prob(self.text[self.starts[scene] : stop])

    def floor(self, start: int = 0, stop: int | None = None) -> float:
        """The exact cost of `text[start:stop]`, given all the text before it, in nats per character.

        The bounds are those of a slice and may be anywhere, also inside a scene, a line or a word: each character costs
        -log p(character | all before it), so the nats of adjacent slices add up to the nats of the whole. For the last
        tenth, call `verse.floor(int(0.9 * len(verse.text)))`.
        """
        first, last, _ = slice(start, stop).indices(len(self.text))
        if first >= last:
            raise ConfigError(
                f"text[{start}:{stop}] of {len(self.text)} characters is empty", "choose bounds with text between them"
            )
        return (self.cost(last) - self.cost(first)) / (last - first)


def write_verse(seed: int = 0, num_characters: int = 1_000_000) -> Verse:
    """Write whole scenes until there are at least `num_characters` characters; the same seed gives the same text."""
    if seed < 0 or num_characters < 1:
        raise ConfigError(
            f"verse cannot be written with seed={seed}, num_characters={num_characters}",
            "give a seed of 0 or more and ask for at least 1 character",
        )
    rng = random.Random(seed)  # noqa: S311 - no secrets here; and random() is the same in every version of Python
    pieces: list[str] = []
    starts, nats = [0], [0.0]
    while starts[-1] < num_characters:
        scene: list[str] = []
        nats.append(nats[-1] + _GRAMMAR.write("scene", rng, scene))
        pieces += scene
        starts.append(starts[-1] + sum(map(len, scene)))
    return Verse("".join(pieces), tuple(starts), tuple(nats))


def log_prob(text: str) -> float:
    """The log-probability that the corpus begins with `text`, which need not be whole scenes.

    Raises:
        DataError: if the grammar cannot write this text.
    """
    return _GRAMMAR.log_prob("scene", text)
