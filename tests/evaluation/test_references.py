"""Against sacrebleu asked directly, and without it."""

import shutil
import sys
from pathlib import Path

import pytest

from minigpt.errors import ConfigError, DataError
from minigpt.evaluation import references
from minigpt.evaluation.references import WORDNET, meteor, nearness

TEXTS = ["the cat sat on the mat today", "a film that nobody will remember for long"]
REFERENCES = ["the cat sat on a mat today", "a film that everybody will remember for very long"]


def test_scores_are_those_of_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu: pip install 'minigpt-torch[metrics]'")
    found = nearness(TEXTS, REFERENCES)
    assert found.bleu == sacrebleu.corpus_bleu(TEXTS, [REFERENCES]).score
    assert found.chrf == sacrebleu.corpus_chrf(TEXTS, [REFERENCES]).score
    assert 0 < found.bleu < found.chrf < 100
    assert nearness(TEXTS, TEXTS).bleu == pytest.approx(100)
    assert [signature[:5] for signature in found.signatures] == ["BLEU|", "chrF|"]
    assert all(f"version:{sacrebleu.__version__}" in signature for signature in found.signatures)


def test_each_text_alone_is_sacrebleus_sentence():
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs sacrebleu: pip install 'minigpt-torch[metrics]'")
    pairs = zip(TEXTS, REFERENCES, strict=True)
    assert nearness(TEXTS, REFERENCES).chrf_each == tuple(sacrebleu.sentence_chrf(a, [b]).score for a, b in pairs)


@pytest.mark.parametrize("measure", [nearness, meteor])
def test_pairs_are_needed(measure):
    with pytest.raises(DataError, match="2 texts and 1 reference are no pairs"):
        measure(TEXTS, REFERENCES[:1])


@pytest.mark.parametrize(("measure", "package"), [(nearness, "sacrebleu"), (meteor, "nltk.translate.meteor_score")])
def test_without_the_package(monkeypatch, measure, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        measure(TEXTS, REFERENCES)
    assert 'pip install "minigpt-torch[metrics]"' in caught.value.how


# --- METEOR

# Pairs whose score needs each stage: equal words, words of one stem, synonyms; and an order that is another.
PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("on the mat sat the cat", "the cat sat on the mat"),
    ("the cats sit on mats", "the cat sits on a mat"),
    ("an auto stopped", "a car stopped"),
    ("nothing in common", "what else"),
]


@pytest.fixture
def nltk(monkeypatch):
    """The library, without a WordNet of its own, wherever it may lie on this machine."""
    library = pytest.importorskip("nltk", reason="needs nltk: pip install 'minigpt-torch[metrics]'")
    from nltk.corpus.reader import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    nowhere = LazyCorpusLoader("no-such-wordnet", WordNetCorpusReader, None)
    monkeypatch.setattr("nltk.corpus.wordnet", nowhere)
    references._synonyms.cache_clear()
    yield library
    references._synonyms.cache_clear()


def test_meteor_without_wordnet_has_another_name(nltk, monkeypatch, tmp_path):
    monkeypatch.setattr(references, "WORDNET", tmp_path)
    found = meteor(*zip(*PAIRS, strict=True))
    assert found.name == "METEOR (exact, stem)"
    assert "|synonyms:none|" in found.signature
    # Worked out by hand: of "an auto stopped", one word in three is in "a car stopped"; P = R = 1/3, one chunk.
    assert found.each[3] == pytest.approx(100 / 3 * (1 - 0.5 * 1**3))
    assert found.each[4] == 0


@pytest.mark.skipif(not (WORDNET / "data.noun").is_file(), reason="needs WordNet: apt install wordnet-base")
def test_meteor_is_nltks_own_over_wordnet(nltk, monkeypatch, tmp_path):
    """The oracle reads a folder that is whole: the files of the package, and lexnames beside them."""
    from nltk.corpus.reader import WordNetCorpusReader
    from nltk.translate.meteor_score import single_meteor_score

    class Whole(WordNetCorpusReader):
        def map_wn(self, version="wordnet"):
            return None

    for file in filter(Path.is_file, WORDNET.iterdir()):
        shutil.copy(file, tmp_path)
    (tmp_path / "lexnames").write_text("".join(f"{n:02}\tnoun.x\t1\n" for n in range(45)))
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with pytest.warns(UserWarning, match="multilingual"):
        whole = Whole(str(tmp_path), None)
    texts, wanted = zip(*PAIRS, strict=True)
    found = meteor(texts, wanted)
    assert found.name == "METEOR"
    assert "|synonyms:WordNet 3.0|" in found.signature
    expected = [100 * single_meteor_score(b.split(), a.split(), wordnet=whole) for a, b in PAIRS]
    assert list(found.each) == pytest.approx(expected)
    assert found.each[3] > 50  # an auto is a car


@pytest.mark.skipif(not (WORDNET / "data.noun").is_file(), reason="needs WordNet: apt install wordnet-base")
def test_the_table_that_the_package_lacks_names_the_files_of_its_synsets(nltk):
    reader, _ = references._synonyms()
    names = {word: reader.synsets(word)[0].lexname() for word in ("dog", "entity", "rain", "quickly", "walk")}
    assert names == {
        "dog": "noun.animal", "entity": "noun.Tops", "rain": "noun.phenomenon", "quickly": "adv.all",
        "walk": "noun.act",
    }  # fmt: skip
    assert reader.synsets("rain", "v")[0].lexname() == "verb.weather"
    assert {s.lexname() for s in reader.synsets("rotten", "a")} <= {"adj.all"}
    assert {s.lexname() for s in reader.synsets("broken", "a")} <= {"adj.all", "adj.ppl"}
