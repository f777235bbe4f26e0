"""From a prompt to its completion: ids in, ids out."""
