"""Terms of features and projectors in runs of several processes."""

from composer.utils import FSDP2Config, dist
from integration.harness import Classifier, entries_of, fit, mlp, weights
from integration.workers.common import share
from integration.workers.resuming import STOP, local_weights
from torch import float32, nn, optim, zeros

from composer_distill import Distillation, FeatureTerm
from composer_distill.losses import HiddenMSE


def projected(teacher, projector="linear", weight=2.0, make=None):
    """Return features alone, of unlike widths."""
    term = FeatureTerm("3", "1", loss=HiddenMSE(), projector=projector, weight=weight)
    return Distillation(teacher, None, feature_terms=[term], projector_optimizer=make)


def projectors_of(algorithm):
    return algorithm.companions


def _run(algorithm, student, **kwargs):
    return fit(
        student,
        algorithm,
        optimizers=optim.AdamW(student.parameters(), lr=0.05),
        max_duration="2ep",
        **kwargs,
    )


def _found(algorithm, trainer):
    modules = projectors_of(algorithm)
    return {
        "weights": weights(trainer.state.model),
        "projector": {key: weights(module) for key, module in modules.items()},
        "log": entries_of(trainer),
    }


def features(folder, microbatch=None):
    """DDP on two processes, the same as one."""
    student, algorithm = Classifier(mlp(0)), projected(mlp(1))
    options = {} if microbatch is None else {"device_train_microbatch_size": microbatch}
    return _found(algorithm, _run(algorithm, student, train_dataloader=share(), **options))


def features_in_microbatches(folder):
    return features(folder, microbatch=2)


def features_of_a_module_that_ranks_made_apart(folder):
    """The rank's own stream draws its first values, which differ."""
    student, algorithm = Classifier(mlp(0)), projected(mlp(1), nn.Linear(4, 8))
    return _found(algorithm, _run(algorithm, student, train_dataloader=share()))


class PartlyUsed(nn.Module):
    """Adds its bias on the first rank alone."""

    def __init__(self):
        super().__init__()
        self.layer, self.bias = nn.Linear(4, 8, bias=False), nn.Parameter(zeros(8))

    def forward(self, features):
        mapped = self.layer(features)
        return mapped + self.bias if dist.get_global_rank() == 0 else mapped


def features_of_a_module_that_one_rank_uses_whole(folder):
    """The other rank has no gradient of the bias, and takes part in its mean."""
    student, algorithm = Classifier(mlp(0)), projected(mlp(1), PartlyUsed())
    return _found(algorithm, _run(algorithm, student, train_dataloader=share()))


def features_under_fsdp2(folder):
    """Straight, and resumed from its middle."""

    def run(**kwargs):
        student = Classifier(mlp(0, dropout=0.5, dtype=float32))
        algorithm = projected(mlp(1, dtype=float32))
        trainer = _run(
            algorithm,
            student,
            train_dataloader=share(shuffle=True, dtype=float32),
            parallelism_config={"fsdp": FSDP2Config()},
            **kwargs,
        )
        return {
            "weights": local_weights(trainer),
            "projector": {k: weights(m) for k, m in projectors_of(algorithm).items()},
            "batches": int(trainer.state.timestamp.batch),
        }

    place = folder / "features_under_fsdp2"
    straight = run(save_folder=str(place), save_interval=f"{STOP}ba", save_filename="ba{batch}")
    (path,) = (*place.glob(f"ba{STOP}"), *place.glob(f"*-ba{STOP}"))
    return {"straight": straight, "resumed": run(load_path=str(path))}
