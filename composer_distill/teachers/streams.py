"""Random streams, left as they were found."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched_streams(device: torch.device | None = None) -> Iterator[None]:
    """Put the random streams of Python, NumPy, PyTorch and a device back where they stood.

    Args:
        device: The accelerator whose stream is kept too; None, or the CPU, for the host's alone.

    Example:
        >>> before = torch.get_rng_state()
        >>> with untouched_streams():
        ...     _ = torch.rand(3)
        >>> bool(torch.equal(torch.get_rng_state(), before))
        True
    """
    python, numpy, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        if device is not None and device.type not in ("cpu", "meta"):
            with torch.random.fork_rng(devices=[device], device_type=device.type):
                yield
        else:
            yield
    finally:
        torch.set_rng_state(host)
        random.setstate(python)
        np.random.set_state(numpy)
