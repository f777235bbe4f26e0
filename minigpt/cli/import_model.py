"""`minigpt import`."""

import dataclasses
import tempfile
import warnings
from pathlib import Path

import torch

from minigpt.cli.evaluate import training_config
from minigpt.cli.models import MODEL_HELP, add_tokenizer_argument, say_what_is_not_kept
from minigpt.cli.parser import CommandParser, print_json
from minigpt.errors import CheckpointError
from minigpt.formats.parity import BOUND, RELATIVE_BOUND, ParityReport, compare_with_reference, require_reference
from minigpt.formats.pretrained import save_hf
from minigpt.formats.run_directory import save_run
from minigpt.formats.source import AssumedHeads, Source, open_source
from minigpt.model import GPT
from minigpt.system.files import check_unused, named_path
from minigpt.tokenizers import Tokenizer


def make_parser() -> CommandParser:
    """The parser of `minigpt import`."""
    parser = CommandParser(
        "import",
        "Turn a model into a run directory of minigpt, which every command takes. Of a run, the best weights and the "
        "settings are kept, and no checkpoint to resume from. --verify proves before anything is "
        f"written that it computes what the transformers library computes: differences of up to {BOUND:g}, or "
        f"{RELATIVE_BOUND:g} of values above {BOUND / RELATIVE_BOUND:g}, are rounding. It holds both models in memory.",
        "  minigpt import gpt2 checkpoints/gpt2 --verify\n"
        "  minigpt import path/to/folder checkpoints/mine --block-size 256\n"
        "  minigpt import nanogpt/ckpt.pt checkpoints/nano --tokenizer nanogpt/input.txt",
    )
    parser.add_argument("source", metavar="SRC", help=MODEL_HELP)
    parser.add_argument("out", metavar="DIR", help="the run directory; must not exist or be empty")
    add_tokenizer_argument(parser)
    parser.add_argument("--block-size", type=int, metavar="N", help="a shorter context (default: the model's own)")
    parser.add_argument(
        "--dropout",
        type=float,
        metavar="P",
        help="for further training (default: the model's own; needed where its three rates differ)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare every layer with the transformers library; of what that cannot read, only an export is checked",
    )
    return parser


def run(arguments: list[str]) -> None:
    """Load, compare if asked, write."""
    values = make_parser().parse(arguments)
    directory = named_path(values["out"], "DIR")
    if values["verify"]:
        require_reference()
    check_unused(directory)
    source = open_source(values["source"])
    with warnings.catch_warnings():
        if values["verify"]:
            warnings.simplefilter("error", AssumedHeads)
        try:
            model, tokenizer = source.load_for_text(
                tokenizer=values["tokenizer"], block_size=values["block_size"], dropout=values["dropout"]
            )
        except AssumedHeads as guess:
            raise CheckpointError(
                f"a guess cannot be verified: {guess}",
                "put the model's config.json beside the weights, or leave --verify out",
            ) from None
    reference, parity = verified(source, model, tokenizer) if values["verify"] else (None, None)
    save_run(model, tokenizer, directory, training_config(source), source.carried)
    say_what_is_not_kept(source, model, tokenizer)
    if values["json"]:
        report = parity and {"reference": reference, **dataclasses.asdict(parity)}
        print_json({"out": str(directory), "parameters": model.num_parameters(), "parity": report})
        return
    shape = model.config
    print(
        f"model      {model.num_parameters():,} parameters: {shape.n_layer} layers, {shape.n_head} heads, "
        f"width {shape.n_embd}, block {shape.block_size}"
    )
    if parity:
        print(f"reference  the transformers library's model of {reference}")
        _print_parity(parity)
    print(f"written    {directory}")


def verified(source: Source, model: GPT, tokenizer: Tokenizer) -> tuple[str, ParityReport]:
    """The comparison of a model with the reference library's model of the same source, or of an export of it.

    The ids are drawn from the whole vocabulary and fill the block, so that every position and any token may show a
    difference.

    Returns:
        What the reference library read, and the report.

    Raises:
        CheckpointError: if they differ by more than rounding.
    """
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, model.config.block_size), generator=random)  # (1, T)
    with tempfile.TemporaryDirectory() as temporary:
        folder = source.reference_folder
        if exported := folder is None:
            folder = Path(temporary) / "export"
            save_hf(model, tokenizer, folder)
        parity = compare_with_reference(model, folder, ids)
    if layer := parity.first_difference:
        raise CheckpointError(
            f"{source.name} and the model made of it differ by {layer.difference:.1e} at {layer.name}, where values "
            f"reach {layer.size:.3g}; rounding explains {layer.bound:.1e}",
            "nothing was written; the difference begins there, so look at the weights that come just before",
        )
    return f"an export of {source.name} (this checks the export, not the source)" if exported else str(folder), parity


def _print_parity(parity: ParityReport) -> None:
    print(f"  {'':<12} {'difference':>10}  {'largest value':>13}")
    for layer in parity.layers:
        print(f"  {layer.name:<12} {layer.difference:>10.1e}  {layer.size:>13.4g}")
    print(f"verified   {parity.tokens:,} tokens: rounding apart, and {parity.same_argmax:,} times the same best token")
