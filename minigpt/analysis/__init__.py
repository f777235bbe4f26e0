"""Looking inside: numbers and pictures of what a model does."""
