"""Pretrained weights that a library fetches, and what to say when it can't."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from config import ConfigProblem


@contextmanager
def downloading(weights: str) -> Iterator[None]:
    """Around the library's call that fetches and loads `weights`.

    Raises:
        ConfigProblem: it failed; names the reason and the flag that goes without.
    """
    try:
        yield
    except Exception as error:  # hub clients raise a dozen kinds when there is no network or no such file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ConfigProblem(
            f"pretrained weights of {weights} could not be loaded ({reason}): connect to the network once, or give "
            f"--no_pretrained to start from random weights."
        ) from error
