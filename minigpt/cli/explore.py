"""`minigpt explore`."""

import itertools
import signal
import sys
import textwrap
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from minigpt.cli.models import model_source, trained_source
from minigpt.cli.settings import Explore
from minigpt.cli.streams import print_json, print_note, with_stdin
from minigpt.cli.texts import data_of_run
from minigpt.config import RunConfig
from minigpt.data.corpora import source_name
from minigpt.data.documents import Documents, data_checksum
from minigpt.data.loaders import document_loader
from minigpt.data.tokens import split_at
from minigpt.errors import DataError, DownloadError, InputError, Interrupted, MiniGPTError, MissingFileError, counted
from minigpt.evaluation.loss import Evaluation, evaluate, evaluate_batches
from minigpt.formats.lora_files import adapter_folder
from minigpt.formats.run_directory import run_of_adapter
from minigpt.formats.source import Source
from minigpt.model import GPT
from minigpt.page.contents import Shown
from minigpt.page.server import PageServer
from minigpt.page.single_file import chosen_precision, write_page
from minigpt.page.weights import Precision, mapped_weights, page_weights, rounded
from minigpt.parameters import shapes_alone
from minigpt.system import WIDTH
from minigpt.system.files import check_output, named_path
from minigpt.tokenizers import Tokenizer

_MOST_WORK = 5 * 10**11  # weights times tokens that the loss is measured with: about half a minute on two cores


def answer(settings: Explore) -> None:
    """Load the models, and serve the page until Ctrl-C, or write it."""
    if settings.adapter and len(settings.model) > 1:
        raise InputError(
            f"--adapter {settings.adapter} belongs to one model, and {len(settings.model)} are named",
            "name its base alone with --model",
        )
    if settings.prompt is not None:
        settings = replace(settings, prompt=with_stdin(settings.prompt)[0])
    sources = [model_source(name) for name in settings.model or (None,)]
    if settings.out is not None:
        write(settings, sources)
        return
    models = titled(sources, settings.adapter)
    with PageServer([served(settings, *named) for named in models], settings.port) as server:
        serve(server, settings)


def title(source: Source) -> str:
    """What the page calls a model: a run and other files without the folders that they lie in."""
    if source.local is None:
        return source.name
    path = source.local.absolute()
    return path.relative_to(source.run.path.absolute().parent).as_posix() if source.run else path.name


def titled(sources: list[Source], adapter: str | None) -> list[tuple[Source, str]]:
    """Each model with what the page calls it; models of one title, which lie in several folders, are numbered.

    An adapter is named behind its base: by its run, or where it has none, by its folder.
    """
    titles = [title(source) for source in sources]
    if adapter is not None:
        folder = adapter_folder(adapter)
        run = run_of_adapter(folder)
        titles = [f"{one} + {(run.path if run else folder).absolute().name}" for one in titles]
    numbers = [f" ({number})" * (titles.count(one) > 1) for number, one in enumerate(titles, start=1)]
    return [(source, one + number) for source, one, number in zip(sources, titles, numbers, strict=True)]


def served(settings: Explore, source: Source, name: str) -> Shown:
    """A model as it is served: exactly, and mapped from its file where that has the page's layout."""
    # Read also where the page gets the file's own bytes: this finds damage, and weights that are not finite.
    model, tokenizer = source.load_for_text(tokenizer=settings.tokenizer, adapter=settings.adapter)
    mapped = None if settings.adapter else mapped_weights(source)
    about, run = {"prompt": settings.prompt}, trained_source(source, settings.adapter).run
    return Shown(name, model.config, tokenizer, mapped or page_weights(model), run, about)


def serve(server: PageServer, settings: Explore) -> None:
    """Say where the page is, open it, and answer until Ctrl-C."""
    try:
        if server.server_port != settings.port:
            print_note(
                f"port {settings.port} is taken, perhaps by another minigpt explore: {server.server_port} is used"
            )
        if settings.json:
            print_json({"address": server.address, "models": [model.name for model in server.models]})
        else:
            print(f"page       {server.address} (Ctrl-C ends it)", flush=True)
        if not settings.no_browser:
            # In a thread, because some browsers only return when they are closed.
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        server.serve_forever()
    except KeyboardInterrupt:
        how = "an open tab can go on with what it has loaded"
        raise Interrupted(signal.SIGINT, "the page is not served any more", how) from None


def write(settings: Explore, sources: list[Source]) -> None:
    """Write one file, and say how large it is and what its precision costs."""
    path = named_path(settings.out, "out")
    check_output(path, (".html", ".htm"))
    precision = chosen_precision([source.name for source in sources], parameters(sources), settings.weights)
    models = [written(settings, *named, precision) for named in titled(sources, settings.adapter)]
    size = write_page(path, models)
    if settings.json:
        losses = [{"name": model.name, **model.about} for model in models]
        print_json({"out": str(path), "bytes": size, "weights": precision, "models": losses})
        return
    print(f"written    {path}: {size / 1e6:.2f} MB, weights in {precision}")
    for model in models:
        said = f"loss       {model.name}: {model.about['loss_said']}"
        print(textwrap.fill(said, WIDTH, subsequent_indent=" " * 11, break_long_words=False))
    print("open it    with a double click; it needs no network, and can be handed on")


def parameters(sources: list[Source]) -> int:
    """How many weights the models have, by their shapes alone: nothing large is read before the size is judged."""
    with shapes_alone():
        return sum(GPT(source.shape(rates_may_differ=True)).num_parameters() for source in sources)


def written(settings: Explore, source: Source, name: str, precision: Precision) -> Shown:
    """A model as a file holds it, with what its precision costs."""
    model, tokenizer = source.load_for_text(tokenizer=settings.tokenizer, adapter=settings.adapter)
    weights, trained = page_weights(model, precision), trained_source(source, settings.adapter)
    about = {"prompt": settings.prompt, **cost(trained, model, tokenizer, precision)}
    return Shown(name, model.config, tokenizer, weights, trained.run, about)


def cost(source: Source, model: GPT, tokenizer: Tokenizer, precision: Precision) -> dict[str, Any]:
    """What a precision costs in loss on the validation text of the model's run, in nats, and in a sentence."""
    if precision == "float32":
        return {"loss_cost": None, "loss_said": "the weights are the model's own, in float32"}
    if source.trained is None:
        why = "the model was not trained here, so there is no text that belongs to it"
        return {"loss_cost": None, "loss_said": f"what {precision} costs was not measured: {why}"}
    try:
        print(f"measuring  what {precision} costs, on the run's validation text", file=sys.stderr)
        measure = validation(replace(source.trained, model=model.config), tokenizer, model.num_parameters())
        before, after = measure(model), measure(rounded(model, precision))
    except MiniGPTError as error:  # which may name a folder, and the page is handed on
        print_note(f"what {precision} costs was not measured: {error.what}")
        reasons = {MissingFileError: "are not there", DownloadError: "could not be fetched", DataError: "have changed"}
        why = f"the run's data {reasons.get(type(error), 'cannot be read')}"
        return {"loss_cost": None, "loss_said": f"what {precision} costs was not measured: {why}"}
    change = after.loss - before.loss
    said = (
        f"{precision} costs {change:+.6f} nats a token: {after.loss:.4f} instead of {before.loss:.4f}, over "
        f"{counted(before.tokens, 'token')} of the run's validation text"
    )
    return {"loss_cost": round(change, 6), "loss_said": said}


def validation(config: RunConfig, tokenizer: Tokenizer, parameters: int) -> Callable[[GPT], Evaluation]:
    """How a model does on what its run has held out; of much text, on as many tokens as are measured in a minute.

    Raises:
        DataError: if the run's data have changed.
        MiniGPTError: if they cannot be read, or encoded.
    """
    data, most = data_of_run(config), max(_MOST_WORK // parameters, config.model.block_size)
    if config.data.checksum and data_checksum(data) != config.data.checksum:
        raise DataError(f"{config.data.source} has changed since the run was trained on it", "put it back")
    if isinstance(data, Documents):
        loader = document_loader(data, source_name(config.data.source), config, tokenizer)
        count = max(1, most // config.model.block_size // config.train.batch_size)
        batches = list(itertools.islice(loader.validation(), count))
        return lambda model: evaluate_batches(model, batches, torch.float32, tokenizer.vocab_size)
    ids = tokenizer.encode_array(data.text[split_at(data, config.data) :])[: most + 1]
    return lambda model: evaluate(model, ids, vocab_size=tokenizer.vocab_size)
