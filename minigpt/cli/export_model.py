"""`minigpt export`."""

from minigpt.cli.models import note_what_is_not_kept
from minigpt.cli.settings import Export
from minigpt.cli.streams import print_json
from minigpt.formats.pretrained import save_hf
from minigpt.formats.source import open_source
from minigpt.system.files import check_unused, named_path


def answer(settings: Export) -> None:
    """Load and write."""
    folder = named_path(settings.out, "DIR")
    check_unused(folder)  # before the work of loading
    source = open_source(settings.model)
    model, tokenizer = source.load(tokenizer=settings.tokenizer)
    save_hf(model, tokenizer, folder, source.carried)
    note_what_is_not_kept(source, model, tokenizer)
    files = sorted(path.name for path in folder.iterdir())
    if settings.json:
        print_json({"out": str(folder), "parameters": model.num_parameters(), "files": files})
        return
    print(f"model      {model.num_parameters():,} parameters")
    print(f"written    {folder}: {', '.join(files)}")
