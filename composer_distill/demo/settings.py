"""Every number that the demo's regime depends on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What the demo trains, for how long, and how it distils.

    Args:
        seeds: How many paired students are trained; their seeds are 1, 2, ...
        teacher_steps: Batches that the teacher trains on.
        steps: Batches that each student trains on in the comparison with all labels.
        few_steps: Batches that each student trains on in the comparison with few labels.
        points: How many points each curve has.
        train_images: How many images the teacher and the students train on; the rest tests.
        labels_per_class: How many labels of each digit the student with few labels sees.
        batch_size: Images in a batch; a smaller set is one batch.
        learning_rate: Peak of AdamW's cosine, for every model.
        temperature: Temperature of the distillation loss.
        kd_loss_weight: Weight of the distillation loss where the student has labels.
        org_loss_weight: Weight of the student's own loss there.
        smoke: Whether the run is too short to be a result.
    """

    seeds: int = 4
    teacher_steps: int = 1500
    steps: int = 2500
    few_steps: int = 500
    points: int = 10
    train_images: int = 1000
    labels_per_class: int = 5
    batch_size: int = 64
    learning_rate: float = 3e-3
    temperature: float = 4.0
    kd_loss_weight: float = 0.9
    org_loss_weight: float = 0.1
    smoke: bool = False


def full_settings(seeds: int | None = None) -> Settings:
    """Return the regime in which distillation helps."""
    return Settings() if seeds is None else Settings(seeds=seeds)


def fast_settings(seeds: int | None = None) -> Settings:
    """Return a few seconds' worth of the same work: a smoke test, no result."""
    return Settings(
        seeds=2 if seeds is None else seeds,
        teacher_steps=150,
        steps=100,
        few_steps=100,
        points=5,
        smoke=True,
    )
