"""FSDP1, which Composer runs on GPUs alone: sharded teachers answer as whole ones."""

import pytest
import torch
from composer.utils import FSDPConfig
from integration.harness import Classifier, dataset, logged, mlp, trainer_for
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # torch's own, about one process and about FSDP1 itself
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::FutureWarning:torch"),
]


def train(sharding):
    """Train a student under FSDP1; return its Trainer and its teacher's model."""
    teacher = Classifier(mlp(1, dtype=torch.float32))
    trainer = trainer_for(
        Classifier(mlp(0, dtype=torch.float32)),
        Distillation(teacher, KLDivergence(2.0), teacher_sharding=sharding),
        train_dataloader=DataLoader(dataset(20, dtype=torch.float32), batch_size=10),
        max_duration="2ep",
        lr=0.1,
        device="gpu",
        precision="fp32",
        parallelism_config={"fsdp": FSDPConfig()},
    )
    trainer.fit()
    trainer.close()
    return trainer, teacher


def is_cut(model):
    return any(
        isinstance(m, torch.distributed.fsdp.FullyShardedDataParallel) for m in model.modules()
    )


def test_a_teacher_sharded_by_fsdp1_yields_the_losses_of_a_whole_one():
    (whole, whole_teacher), (cut, cut_teacher) = train("replicated"), train("sharded")
    assert not is_cut(whole_teacher)
    assert is_cut(cut_teacher)
    for name in ("loss/train/kd", "loss/train/org"):
        assert len(logged(cut, name)) == 4
        assert logged(cut, name) == pytest.approx(logged(whole, name), rel=1e-5), name
