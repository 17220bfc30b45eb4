"""The run-length text of the leaderboard's CSV; the code is engine/rle.py, as training reads predicted labels too."""

from __future__ import annotations

from engine.rle import WORD_BITS, decode_bits, decode_rle, encode_bits, flat_words, parse_runs

__all__ = ["WORD_BITS", "decode_bits", "decode_rle", "encode_bits", "flat_words", "parse_runs"]
