"""The queue of experiments: its table, what starts them, and what may start when. Imports no torch and no NumPy."""
