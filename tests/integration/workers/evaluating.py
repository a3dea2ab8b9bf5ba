"""Evaluation sets whose size no number of ranks divides, so that a sampler fills them up."""

from composer import Evaluator
from composer.utils import dist
from integration.harness import N_CLASSES, Classifier, entries_of, mlp, trainer_for
from integration.workers.common import share
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from composer_distill import Distillation, KLDivergence

# Of 13 samples each of two ranks holds 7, the last of rank 1 being there to fill up.
SETS = {
    "filling_alone": (6, None),  # the last batch of rank 1 is that sample
    "filling_among_two": (10, None),
    "filling_among_three": (8, None),
    "filling_alone_in_a_microbatch": (8, 2),
}


class Measured(Classifier):
    """A classifier with metrics that do not depend on how a set is cut into batches."""

    def get_metrics(self, is_train):
        accuracy = MulticlassAccuracy(N_CLASSES, average="micro")
        return {} if is_train else {"MulticlassAccuracy": accuracy, "CrossEntropy": MeanMetric()}

    def eval_forward(self, batch, outputs=None):
        return self.forward(batch) if outputs is None else outputs

    def update_metric(self, batch, outputs, metric):
        if isinstance(metric, MeanMetric):
            metric.update(F.cross_entropy(outputs, batch[1], reduction="none"))
        else:
            metric.update(outputs, batch[1])


def padded_evaluations(folder):
    sets = [
        Evaluator(
            label=label,
            dataloader=share(13, batch_size, seed=7),
            device_eval_microbatch_size=microbatch if dist.get_world_size() > 1 else None,
        )
        for label, (batch_size, microbatch) in SETS.items()
    ]
    term = Distillation([mlp(1), mlp(2)], KLDivergence(2.0), eval_teachers=True)
    trainer = trainer_for(Measured(mlp(0)), term, train_dataloader=share())
    trainer.eval(sets)
    trainer.close()
    return {"log": entries_of(trainer)}
