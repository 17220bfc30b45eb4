"""Labels in the formats of other programs: one file a format, all through what labelled.py and shapes.py hold."""
