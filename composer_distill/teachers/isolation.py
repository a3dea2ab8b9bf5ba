"""What keeps a teacher's forward from moving the student's random streams."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def untouched_random_streams(device: torch.device) -> Iterator[None]:
    """Leave Python's, NumPy's, torch's and ``device``'s random streams as they were found.

    Args:
        device: The device that the teacher runs on; its generator is kept too.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type not in ("cpu", "meta") else []
    try:
        with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
