"""`minigpt export`."""

from minigpt.cli.models import MODEL_HELP, add_tokenizer_argument, say_what_is_not_kept
from minigpt.cli.parser import CommandParser, print_json
from minigpt.formats.pretrained import save_hf
from minigpt.formats.source import open_source
from minigpt.system.files import check_unused, named_path


def make_parser() -> CommandParser:
    """The parser of `minigpt export`."""
    parser = CommandParser(
        "export",
        "Write a model as a folder that the transformers library loads with AutoModelForCausalLM and AutoTokenizer: "
        "config.json, model.safetensors in its layout, and the files of the tokenizer.",
        "  minigpt export checkpoints/shakespeare-quick out/shakespeare\n  minigpt export gpt2 out/gpt2",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("out", metavar="DIR", help="the folder; must not exist or be empty")
    add_tokenizer_argument(parser)
    return parser


def run(arguments: list[str]) -> None:
    """Load and write."""
    values = make_parser().parse(arguments)
    folder = named_path(values["out"], "DIR")
    check_unused(folder)  # before the work of loading
    source = open_source(values["model"])
    model, tokenizer = source.load(tokenizer=values["tokenizer"])
    save_hf(model, tokenizer, folder, source.carried)
    say_what_is_not_kept(source, model, tokenizer)
    files = sorted(path.name for path in folder.iterdir())
    if values["json"]:
        print_json({"out": str(folder), "parameters": model.num_parameters(), "files": files})
        return
    print(f"model      {model.num_parameters():,} parameters")
    print(f"written    {folder}: {', '.join(files)}")
