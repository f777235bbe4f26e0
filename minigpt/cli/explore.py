"""`minigpt explore`."""

import signal
import threading
import webbrowser
from urllib.parse import quote

from minigpt.cli.models import model_source
from minigpt.cli.settings import Explore
from minigpt.cli.streams import print_json, print_note
from minigpt.errors import InputError, Interrupted
from minigpt.page.contents import Shown
from minigpt.page.server import PageServer
from minigpt.page.weights import mapped_weights, page_weights


def answer(settings: Explore) -> None:
    """Load the models, and serve the page until Ctrl-C."""
    if settings.adapter and len(settings.model) > 1:
        raise InputError(
            f"--adapter {settings.adapter} belongs to one model, and {len(settings.model)} are named",
            "name its base alone with --model",
        )
    models = [shown(settings, name) for name in settings.model or (None,)]
    with PageServer(models, settings.port) as server:
        serve(server, settings)


def shown(settings: Explore, name: str | None) -> Shown:
    """A model as the page shows it."""
    source = model_source(name)
    model, tokenizer = source.load_for_text(tokenizer=settings.tokenizer, adapter=settings.adapter)
    mapped = None if settings.adapter else mapped_weights(source)
    weights = mapped or page_weights(model)
    return Shown(source.name, model.config, tokenizer, weights, source.run)


def serve(server: PageServer, settings: Explore) -> None:
    """Say where the page is, open it, and answer until Ctrl-C."""
    address = server.address + (f"#prompt={quote(settings.prompt)}" if settings.prompt else "")
    if server.server_port != settings.port:
        print_note(f"port {settings.port} is taken, perhaps by another minigpt explore: {server.server_port} is used")
    if settings.json:
        print_json({"address": address, "models": [model.name for model in server.models]})
    else:
        print(f"page       {address} (Ctrl-C ends it)", flush=True)
    if not settings.no_browser:
        # In a thread, because some browsers only return when they are closed.
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        how = "an open tab can go on with what it has loaded"
        raise Interrupted(signal.SIGINT, "the page is not served any more", how) from None
