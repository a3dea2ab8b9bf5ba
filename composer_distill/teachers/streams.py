"""Random streams, left as they were found."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched_streams() -> Iterator[None]:
    """Put the host's random streams (Python, NumPy, PyTorch) back where they stood.

    Example:
        >>> before = torch.get_rng_state()
        >>> with untouched_streams():
        ...     _ = torch.rand(3)
        >>> bool(torch.equal(torch.get_rng_state(), before))
        True
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):  # nothing here draws on an accelerator
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
