"""From a named source to batches of token ids."""
