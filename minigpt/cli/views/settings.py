"""The arguments of each view of `minigpt inspect`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from minigpt.cli.parser import Command, Flag
from minigpt.cli.settings import NEWEST, Model, Next, Reading, Rows, Shown, TextSettings
from minigpt.config import PRESETS, Seed
from minigpt.decoding.options import DecodingOptions
from minigpt.fields import Bounds

NO_TEXT = {"special": "TEXT", "unknown": "TEXT"}  # how a text is read, where there need be none
Considered = Annotated[int, Bounds(1, 10**9, below="leaves nothing to consider")]


class ViewSettings(Command):
    """How an answer is printed and written."""

    output: Annotated[Path | None, Flag("FILE", short="-o")] = None
    """also write a picture (.png, .svg) or data (.json, .npz)"""
    check: bool = False
    """print the identities that must hold, with their errors; exit 1 if one fails"""


class Inside(ViewSettings, Model):
    """A look inside a model, which by default reads text as it did in training."""

    bos: bool | None = None
    """put the token that opens a document in front (default: as in the model's training: yes for GPT-2's weights, no
    for a model of one long text)"""


class InsideText(Inside):
    """A look inside a model that reads a text."""

    prompt: Annotated[str, Flag("TEXT", positional=True)]
    """the prompt; - reads it from standard input, without its last line break"""


class After(ViewSettings, Reading, Model):
    """What comes after a text, or how probable it is: by default nothing is put in front of the text."""

    prompt: Annotated[str, Flag("TEXT", positional=True, says=InsideText)]
    bos: Annotated[bool | None, Flag(says=Next)] = False


class Sampling(Command):
    """The sampling options that a view can show."""

    temperature: Annotated[float | None, Flag("X")] = None
    """the logits are divided by it: below 1 likely tokens gain, above 1 unlikely ones; 0 takes the best token; beside
    another option, that of `minigpt generate` unless given"""
    top_k: Annotated[int | None, Flag("K", says=DecodingOptions)] = None
    top_p: Annotated[float | None, Flag("P", says=DecodingOptions)] = None
    min_p: Annotated[float | None, Flag("P", says=DecodingOptions)] = None


class Shape(ViewSettings):
    """Whose shape."""

    needs: ClassVar[Mapping[str, str]] = {"model": "no --preset"}
    model: Annotated[str | None, Flag("MODEL", says=NEWEST)] = None
    preset: Annotated[
        str | None,
        Flag("PRESET", choices=tuple(PRESETS), says=f"a preset's shape, in place of a model's: {', '.join(PRESETS)}"),
    ] = None
    what_if: Annotated[tuple[str, ...], Flag("NAME=VALUE", together=True)] = ()
    """change the shape: n_layer=24 n_embd=1024"""


class Size(Shape):
    """Count what a model costs, one row for each module.

    It counts parameters, floating-point operations of a forward pass, bytes kept for the backward pass, gradients,
    optimizer state and KV-cache. No model is built, so --what-if can try any shape at once.
    """

    examples = """
        minigpt inspect size --preset gpt2-124m --tokens 1024
        minigpt inspect size --preset gpt2-124m \\
          --what-if n_layer=24 n_embd=1024 n_head=16
        minigpt inspect size --batch-size 32 --dtype bfloat16 --optimizer muon \\
          -o size.png
    """
    tokens: Annotated[int | None, Bounds(1, 2**24), Flag("T")] = None
    """tokens a row (default: block_size)"""
    batch_size: Annotated[int, Bounds(1, 2**24), Flag("B")] = 1
    """rows of a batch"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """number format of the matrix products and the cache"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """the optimizer whose state is counted"""
    attention: Literal["fused", "explicit"] = "fused"
    """explicit keeps its (T, T) patterns"""


class Arch(Shape):
    """Show a model from the token ids to the logits, with each part's output shape and number of parameters.

    Indented parts read the residual stream and add to it. --diff shows where two models differ.
    """

    examples = """
        minigpt inspect arch
        minigpt inspect arch --preset gpt2-124m -o gpt2.svg
        minigpt inspect arch --preset shakespeare-cpu --diff shakespeare-quick
    """
    diff: Annotated[str | None, Flag("MODEL")] = None
    """another model, or a preset: show where the two differ"""


class Embed(ViewSettings, Model):
    """Look at the embedding tables.

    near: the tokens that are most similar to a given one. pca: the tokens along two principal components. positions:
    how similar the positions' embeddings are.
    """

    examples = """
        minigpt inspect embed near "e"
        minigpt inspect embed near " king" --model gpt2 --top 20
        minigpt inspect embed pca -o tokens.png
        minigpt inspect embed positions --check
    """
    needs: ClassVar[Mapping[str, str]] = {
        "top": "WHAT near", "kind": "WHAT near", "text": "no WHAT positions", **NO_TEXT,
    }  # fmt: skip
    what: Annotated[Literal["near", "pca", "positions"], Flag("WHAT", positional=True)]
    """what to show"""
    text: Annotated[str | None, Flag("TEXT", positional=True)] = None
    """near: the token; pca: whose tokens to draw (default: the vocabulary)"""
    top: Annotated[Shown, Flag("K")] = 10
    """how many neighbours"""
    kind: Literal["cosine", "dot"] = "cosine"
    """which similarity"""


class Tokens(ViewSettings, TextSettings):
    """Show how a text is cut into tokens: position, id, text and bytes.

    A token that is only a part of a character is shown as an escape.
    """

    examples = """
        minigpt inspect tokens "To be, or not to be"
        minigpt inspect tokens --model gpt2 "naïve café" --json
    """
    prompt: Annotated[str, Flag("TEXT", positional=True)]
    """the text; - reads it from standard input"""
    model: Annotated[str | None, Flag("MODEL", says=NEWEST)] = None


class Loss(After):
    """Show the loss of each token of a text, in nats: -log p(token | tokens before it).

    The first token has nothing before it, and no loss. Shades are relative to the largest loss.
    """

    examples = """
        minigpt inspect loss "To be, or not to be"
        minigpt inspect loss - -o loss.png < my-text.txt
        minigpt inspect loss --model gpt2 "The cat sat on the mat." --check
    """
    top: Annotated[Shown, Flag("K")] = 3
    """how many alternatives are shown for each token"""
    worst: Shown = 10
    """how many tokens are shown one by one"""


class NextView(Sampling, After):
    """Show the distribution of the next token, and what each sampling option leaves of it.

    It shows the probabilities after temperature, top-k, top-p and min-p, which act in this order, and how many tokens
    each of them leaves.
    """

    examples = """
        minigpt inspect next "To be, or not to b"
        minigpt inspect next "My lo" --temperature 1.5 --top-k 8 --top-p 0.9 \\
          -o cuts.png
        minigpt inspect next --model gpt2 "See you" --check
    """
    top: Annotated[Shown, Flag("K")] = 12
    """how many tokens are shown"""


class Temperature(ViewSettings):
    """Show what temperature does to given logits: probabilities = softmax(logits / temperature). No model is needed.

    Below 1 the likely tokens gain, above 1 the unlikely ones; the order of the tokens stays. The entropy says how open
    the choice is, from 0 nats (always the same token) to the logarithm of the number of tokens (all alike).
    """

    examples = """
        minigpt inspect temperature 3.0 1.5 0.8 0.3 -0.5
        minigpt inspect temperature 3.0 1.5 0.8 0.3 -0.5 --at 0.1 0.5 1 1.5 2 \\
          -o temperature.png
    """
    logits: Annotated[tuple[float, ...], Flag("LOGIT", positional=True)]
    """the logit of each token"""
    temperature: Annotated[tuple[float, ...], Flag("X", name="--at", together=True)] = (0.1, 0.5, 1.0, 1.5, 2.0)
    """the temperatures, each above 0 (default: 0.1 0.5 1 1.5 2)"""


class Steps(Sampling, After):
    """Continue a text, and show the candidates for each new token.

    Without a sampling option, the best token is taken.
    """

    examples = """
        minigpt inspect steps "ROMEO:" -n 20
        minigpt inspect steps "ROMEO:" -n 20 --temperature 0.8 --top-p 0.9 \\
          --check -o steps.png
    """
    needs: ClassVar[Mapping[str, str]] = {
        "seed": "--temperature or --top-k or --top-p or --min-p and no --temperature 0"
    }
    max_new_tokens: Annotated[Considered, Flag("N", short="-n")] = 20
    """how many tokens to write"""
    seed: Seed = 0
    """of the draws"""
    top: Annotated[Shown, Flag("K")] = 4
    """how many candidates are shown for each step"""


class Beams(After):
    """Search for the likeliest continuation, and show the tree.

    It shows which beams were kept at each step, with the sums of their log-probabilities.
    """

    examples = """
        minigpt inspect beams "ROMEO:" -n 12 --beams 4
        minigpt inspect beams "My lord" --beams 3 -o tree.svg
    """
    max_new_tokens: Annotated[Considered, Flag("N", short="-n")] = 12
    """the most tokens to write"""
    beams: Annotated[int, Bounds(1, 1000), Flag("B")] = 4
    """number of sequences that beam search keeps"""
    length_penalty: Annotated[float, Flag("X", says=DecodingOptions)] = 1.0


class Attn(InsideText):
    """Show where each head looks.

    It prints one line for each head, with what the last token looks at; or with --layer and --head the whole pattern of
    one head. Rows are queries, columns keys; each row sums to 1.
    """

    examples = """
        minigpt inspect attn "To be, or not to be"
        minigpt inspect attn "To be, or not to be" --layer 1 --head 0 -o head.png
        minigpt inspect attn --model gpt2 "The cat sat on the mat" -o grid.png --check
    """
    layer: Annotated[int | None, Flag("L")] = None
    """only this layer"""
    head: Annotated[int | None, Flag("H")] = None
    """only this head of the layer, with its whole pattern"""


class Heads(Inside):
    """Score every head from 0 to 1.

    previous is the weight on the token before, first on position 0, self on the token itself; entropy is 1 if all keys
    have the same weight. Random tokens that come twice give two more: duplicate (weight on the same token in the first
    copy) and induction (weight on the token after that one). With a TEXT, its scores are shown, without these two.
    First come the clearest habits: for each score the head where it is highest.
    """

    examples = """
        minigpt inspect heads
        minigpt inspect heads --length 25 --by induction --top 5 -o heads.png
        minigpt inspect heads "To be, or not to be" --by previous
    """
    needs: ClassVar[Mapping[str, str]] = {"length": "no TEXT", "seed": "no TEXT", **NO_TEXT}
    prompt: Annotated[str | None, Flag("TEXT", positional=True, says=InsideText)] = None
    by: Annotated[Literal["induction", "duplicate", "previous", "first", "self", "entropy"] | None, Flag("SCORE")] = (
        None
    )
    """sort by this score (default: the clearest habit)"""
    top: Annotated[int | None, Bounds(1, 1_000_000, below="shows nothing"), Flag("K")] = None
    """show only this many heads"""
    length: Annotated[int, Bounds(1, 1_000_000)] = 50
    """how many random tokens are repeated"""
    seed: Seed = 0
    """seed of the random tokens"""


class Lens(InsideText):
    """Read the residual stream at every depth as if it were the last.

    The model's own last norm and output head turn each depth into a prediction. KL measures how far it is from the
    model's final prediction. --norms shows the length of the stream, and what has been written into it.
    """

    examples = """
        minigpt inspect lens "To be, or not to b"
        minigpt inspect lens --model gpt2 "The capital of France is" \\
          --rank-of " Paris" -o lens.png
        minigpt inspect lens "To be, or not to b" --points "*.resid_post" --check
        minigpt inspect lens "To be, or not to b" --norms
    """
    needs: ClassVar[Mapping[str, str]] = dict.fromkeys(("rank_of", "top", "points"), "no --norms")
    position: Annotated[int, Flag("T")] = -1
    """the position whose next token is shown; -1 is the last"""
    rank_of: Annotated[str | None, Flag("TOKEN")] = None
    """show the rank of this token (default: the model's best)"""
    top: Annotated[Shown, Flag("K")] = 4
    """how many tokens are shown for each point"""
    points: Annotated[tuple[str, ...] | None, Flag("POINT", together=True)] = None
    """states of the stream, by name or glob (docs/internals.md)"""
    norms: bool = False
    """show how the stream grows, instead of tokens"""


class Why(InsideText):
    """Split a logit into what each part of the model has added to it directly.

    The parts and the biases sum to the logit; the remainder is rounding. A head's part contains its share of the value
    bias. For heads, attention and MLPs the total effect is shown too: by how much the logit falls if the part is
    removed at every position, so that later parts change as well.
    """

    examples = """
        minigpt inspect why "To be, or not to b"
        minigpt inspect why "To be, or not to b" --token e --against u \\
          --by head -o why.png
        minigpt inspect why --model gpt2 "The capital of France is" \\
          --token " Paris" --by neuron --check
    """
    token: Annotated[str | None, Flag("TOKEN")] = None
    """the token whose logit is split (default: the model's best)"""
    against: Annotated[str | None, Flag("TOKEN")] = None
    """subtract this token's logit, and split the difference"""
    by: Literal["component", "layer", "head", "neuron"] = "component"
    """how fine the parts are"""
    position: Annotated[int, Flag("T", says=Lens)] = -1
    top: Annotated[Shown, Flag("K")] = 15
    """how many parts are shown one by one"""


class Ablate(Inside):
    """Remove parts, and measure what that changes.

    The metric is the loss of the text, or with --token and --against a difference of logits. --repeated N measures the
    loss on the second copy of random tokens that come twice, which a model can predict only by copying from its
    context. A part whose loss later parts make up for looks unimportant. An early part that later ones depend on looks
    important, even if it adds nothing to a logit itself: see inspect why.
    """

    examples = """
        minigpt inspect ablate "To be, or not to be" --part 1.0 0.mlp
        minigpt inspect ablate --repeated 25 --sweep heads -o heads.png
        minigpt inspect ablate "To be" --mode mean \\
          --reference "My lord, " "I will, " --check
    """
    needs: ClassVar[Mapping[str, str]] = {
        "rows": "--repeated", "seed": "--repeated or --mode resample", "sweep": "no --part",
        "reference": "--mode mean or --mode resample", "token": "no --repeated", "against": "no --repeated", **NO_TEXT,
    }  # fmt: skip
    prompt: Annotated[str | None, Flag("TEXT", positional=True, says=InsideText)] = None
    repeated: Annotated[int | None, Bounds(1, 1_000_000)] = None
    """in the place of a TEXT: N random tokens that come twice"""
    rows: Annotated[Rows, Flag("R")] = 16
    """number of rows of --repeated"""
    seed: Seed = 0
    """seed of --repeated, and of the rows that resample draws"""
    part: Annotated[tuple[str, ...], Flag("L.X", together=True)] = ()
    """remove these: 1.0 a head, 1.attn, 1.mlp"""
    sweep: Literal["heads", "mlps", "layers"] | None = None
    """remove each of these in turn (default without --part)"""
    mode: Literal["zero", "mean", "resample"] = "zero"
    """what replaces a part"""
    reference: Annotated[tuple[str, ...] | None, Flag("TEXT", together=True)] = None
    """for mean and resample: at least two texts as long as the prompt"""
    token: Annotated[str | None, Flag("TOKEN")] = None
    """measure a logit difference: this token's ..."""
    against: Annotated[str | None, Flag("TOKEN")] = None
    """... minus this one's, after the last position"""


class Patch(Inside):
    """Run a corrupt text with one part of the clean text's pass at a time.

    It measures how much of the clean answer each part brings back, which shows where in the model the answer is made.
    """

    examples = """
        minigpt inspect patch --clean "And thou ha" --corrupt "And they ha" \\
          --token s --against v
        minigpt inspect patch --model gpt2 \\
          --clean "John and Mary went home. John gave it to" \\
          --corrupt "John and Mary went home. Mary gave it to" \\
          --token " Mary" --against " John" --point attn.z
    """
    clean: Annotated[str, Flag("TEXT")]
    """a text on which the model does what is studied"""
    corrupt: Annotated[str, Flag("TEXT")]
    """a text on which it does not, of as many tokens"""
    token: Annotated[str, Flag("TOKEN")]
    """measured: this token's logit ..."""
    against: Annotated[str, Flag("TOKEN")]
    """... minus this one's"""
    point: Literal["resid_pre", "attn.out", "mlp.out", "attn.z"] = "resid_pre"
    """what is put in: position by position, or for attn.z head by head"""


class Runs(ViewSettings):
    """Compare runs by their metrics: steps, tokens, wall time, losses. The picture shows the losses."""

    examples = """
        minigpt inspect runs checkpoints/shakespeare-quick checkpoints/too-large
        minigpt inspect runs checkpoints/* -o runs.png
    """
    runs: Annotated[tuple[str, ...], Flag("RUN", positional=True)]
    """run directories"""
