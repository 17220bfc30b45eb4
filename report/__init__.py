"""Pages that open from the file system: what an experiment did, and a viewer of overlapping masks."""
