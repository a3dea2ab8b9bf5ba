"""Runs the scenarios of a worker, one after the other, in each of its processes."""

import traceback
import warnings

import torch
from composer.utils import dist


def run_scenarios(scenarios, folder, ignored=()):
    """Save what each scenario returns, or its error, as ``NAME.RANK.pt`` in ``folder``.

    Warnings are errors, but for those whose messages begin with one of ``ignored``.
    """
    dist.initialize_dist("cpu")
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    for message in ("FSDP2 Config/APIs are experimental", *ignored):
        warnings.filterwarnings("ignore", message=message)
    for scenario in scenarios:
        try:
            result = scenario(folder)
        except Exception:
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{scenario.__name__}.{dist.get_global_rank()}.pt")
        dist.barrier()
