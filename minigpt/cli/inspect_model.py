"""`minigpt inspect VIEW`: find the view's module, and print or write its answer."""

from importlib import import_module

from minigpt.cli.views import settings
from minigpt.cli.views.settings import ViewSettings
from minigpt.errors import ConfigError, did_you_mean

# view -> (its settings, the module in cli/views that has its function `view_NAME`, what it shows). The numbers are
# computed in minigpt/analysis.
VIEWS: dict[str, tuple[type[ViewSettings], str, str]] = {
    "size": (settings.Size, "shape", "parameters, FLOPs and memory by module; try other shapes"),
    "arch": (settings.Arch, "shape", "the modules in order, with shapes; how two models differ"),
    "tokens": (settings.Tokens, "text", "ids, texts and bytes of a text's tokens"),
    "next": (settings.NextView, "decoding", "the next token, and what temperature, top-k, top-p leave"),
    "temperature": (settings.Temperature, "decoding", "what temperature does to given logits; needs no model"),
    "attn": (settings.Attn, "heads", "attention: all heads, or the pattern of one"),
    "heads": (settings.Heads, "heads", "what each head looks at: previous, induction, first, ..."),
    "lens": (settings.Lens, "stream", "what the model would predict at every depth; stream norms"),
    "why": (settings.Why, "stream", "a logit as a sum of what each part has added"),
    "loss": (settings.Loss, "text", "the loss of each token of a text"),
    "ablate": (settings.Ablate, "edits", "remove heads, MLPs or layers, one or each in turn"),
    "patch": (settings.Patch, "edits", "put parts of one pass into another: where an answer is made"),
    "embed": (settings.Embed, "shape", "neighbours of a token, principal components, positions"),
    "steps": (settings.Steps, "decoding", "generation step by step, with the candidates of each"),
    "beams": (settings.Beams, "decoding", "the tree of a beam search"),
    "runs": (settings.Runs, "runs", "losses of several trainings side by side"),
}


def usage() -> str:
    """The text of `minigpt inspect --help`."""
    lines = "\n".join(f"  {name:<13}{what}" for name, (_, _, what) in VIEWS.items())
    return f"""usage: minigpt inspect VIEW [TEXT] [--help] [arguments]

Look inside a model: every number that it computes, by name.

views:
{lines}

examples:
  minigpt inspect heads --by induction
  minigpt inspect attn "To be, or not to be" --layer 1 --head 0
  minigpt inspect lens "To be, or not to b" --check
  minigpt inspect why --model gpt2 "The capital of France is" --token " Paris"
  minigpt inspect loss - -o loss.png < my-text.txt
  minigpt inspect size --preset gpt2-124m --tokens 1024

Every view has --help. --model names the model, by default the run that was
trained last. --json prints one object of the schema minigpt-trace/1, -o FILE
writes a picture (.png, .svg) or data (.json, .npz), and --check prints the
identities that the numbers satisfy, with their errors, and exits 1 if one
fails. Points inside the model are listed in docs/internals.md."""


def answer(asked: ViewSettings) -> None:
    """Print the answer of a view; exit code 1 if an identity fails."""
    from minigpt.cli.views.frame import show  # here, because --help must not import torch

    name, module = next((name, module) for name, (kind, module, _) in VIEWS.items() if kind is type(asked))
    show(getattr(import_module(f"minigpt.cli.views.{module}"), f"view_{name}"), asked)


def settings_of(name: str) -> type[ViewSettings]:
    """The settings of a view.

    Raises:
        ConfigError: if there is no such view.
    """
    if name not in VIEWS:
        raise ConfigError(f"there is no view {name!r}", did_you_mean(name, VIEWS))
    return VIEWS[name][0]
