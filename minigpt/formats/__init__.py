"""Where a model lies: from files of any common kind to a model, and back.

The files, each of which imports only from those above it::

    hub               a model on the hub to a folder on this machine
    weights           tensors to and from files, one at a time, and every mismatch named
    gpt2_names        GPT-2's weights under our names and those of the transformers library
    tokenizer_files   tokenizers to and from the files of the transformers library
    lora_files        adapters to and from files of the PEFT library
    run_directory     the run directory, out and in
    config_json       a model's shape in the words of the transformers library, read and written
    source            where a model lies, found once: its shape, its tokenizer, the model
    pretrained        a model by name, and back: `load_model`, `save_hf`
    parity            the same ids through minigpt and transformers, compared layer by layer
"""
