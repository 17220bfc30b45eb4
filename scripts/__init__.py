"""Commands beside the experiments; each is run by its path."""
