"""A teacher that computes beside the student, in the processes of ``ranks.py``."""

from integration.harness import Classifier, fit, mlp
from integration.streams import modelled
from integration.workers.common import distil, found, share


def overlapping_teachers(folder):
    with modelled() as machine, machine:
        trainer = fit(
            Classifier(mlp(0)),
            distil(overlap=True),
            train_dataloader=share(),
            max_duration="2ep",
        )
    return {**found(trainer), "faults": machine.faults, "apart": len(machine.apart)}
