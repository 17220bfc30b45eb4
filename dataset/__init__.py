"""Files on disk -> batches: readers, packed labels, splits, plans and loaders."""
