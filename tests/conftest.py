"""What several test files share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from dataset.phantom import PhantomSet, write_phantom_set  # before any test imports torch: see engine/__init__.py

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs ignore Ctrl-C, and so would all processes that tests start to send it to.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set: 6 training and 2 test subjects, two hands each, 128 px. Read it, don't change it;
    runs leave a folder `cache` in it, which copies should leave out."""
    root = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom_set(root, PhantomSet(train_subjects=6, test_subjects=2, size=128, seed=3))
    return root
