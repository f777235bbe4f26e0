"""From a named source to batches of token ids.

The files, each of which imports only from those above it::

    verse             the built-in corpus: a grammar of blank verse whose entropy is known
    corpora           a named corpus, a file or a folder to text
    documents         documents from text files, JSONL, CSV or folders; splits, keywords
    prompts           few-shot prompts from examples
    dialogues         conversations to text, dialogues to documents
    dialogue_records  messages from records of dialogues: PersonaChat's, ConvAI2's, ParlAI's lines
    dialogue_files    dialogues from records, plays and chat logs
    sources           the text, documents or dialogues that a configuration names
    tokens            text to token files to batches
    batches           documents to batches: padded in buckets, or packed
    loaders           the data loaders: a text or documents as numbered rows, which a run reads
"""
