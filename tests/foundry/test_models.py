"""LLM Foundry's models as students and teachers: what is logged is what a hand computes."""

import copy

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("llmfoundry")

from composer.models import HuggingFaceModel
from llmfoundry.data.dataloader import build_dataloader
from llmfoundry.models.mpt import MPTForCausalLM
from transformers import AutoTokenizer, LlamaForCausalLM

from composer_distill import Distillation
from tests.foundry.world import (
    LENGTH,
    MPT,
    WORDS,
    finetuning,
    logged,
    recipe,
    run,
    save_llama,
    text,
)

TEMPERATURE = 2.0
LOSS = {"name": "kl_divergence", "temperature": TEMPERATURE}


def hf(folder, **changes):
    return {
        "name": "hf_causal_lm",
        "pretrained_model_name_or_path": folder,
        "init_device": "cpu",
        **changes,
    }


def still(tokenizer, model, loader, teachers, **changes):
    """A run of one batch that leaves the student as it began."""
    distillation = {
        "teachers": teachers,
        "kd_loss_fn": LOSS,
        "kd_loss_weight": 1.0,
        **changes.pop("distillation", {}),
    }
    optimizer = {"name": "decoupled_adamw", "lr": 0.0, "weight_decay": 0.0}
    config = recipe(tokenizer, model, loader, distillation, optimizer=optimizer, **changes)
    return run(config | {"max_duration": "1ba"})


def first_batch(trainer):
    return next(iter(trainer.state.train_dataloader))


def teacher_of(trainer, index=0):
    (algorithm,) = (a for a in trainer.state.algorithms if isinstance(a, Distillation))
    return algorithm.teachers[index].model


def by_hand(student_logits, teacher_logits, labels):
    """T^2 KL(teacher || student), at the positions whose next token has a label; in float64."""
    kept = labels[:, 1:] != -100
    student = student_logits[:, :-1][kept].double() / TEMPERATURE
    teacher = teacher_logits[:, :-1][kept].double() / TEMPERATURE
    inner = F.kl_div(
        F.log_softmax(student, -1), F.log_softmax(teacher, -1), reduction="sum", log_target=True
    )
    return float(inner) * TEMPERATURE**2 / int(kept.sum())


@torch.no_grad()
def logits_of(model, batch):
    model.eval()
    model = model.model if isinstance(model, HuggingFaceModel) else model
    read = ["input_ids", "attention_mask"]
    read += ["sequence_id"] if isinstance(model, MPTForCausalLM) else []
    return model(**{key: batch[key] for key in read if key in batch}).logits


def check(trainer, batch=None):
    """Compare the logged value with the one of models outside of a Trainer."""
    batch = first_batch(trainer) if batch is None else batch
    student = logits_of(trainer.state.model, batch)
    expected = by_hand(student, logits_of(teacher_of(trainer), batch), batch["labels"])
    assert expected > 0.01
    assert logged(trainer, "loss/train/kd")[0] == pytest.approx(expected, rel=1e-5)


MODELS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "logit scale": {"logit_scale": 0.5},
    "logit scale by width": {"logit_scale": "inv_sqrt_d_model"},
    "soft cap": {"final_logit_softcapping": 3.0},
    "ALiBi": {"attn_config": {"attn_impl": "torch", "alibi": True}, "learned_pos_emb": False},
}


@pytest.mark.parametrize("kind", MODELS)
def test_an_mpt_student_learns_what_a_hand_computes(home, kind):
    teacher = {"pretrained_model_name_or_path": home["teacher"]}
    trainer = still(home["tokenizer"], MPT | MODELS[kind], text(home["rows"]), [teacher])
    check(trainer)


@pytest.mark.parametrize("kind", ["tied", "untied", "logit scale by width", "soft cap"])
def test_the_fused_loss_reads_an_mpt_s_head(home, kind):
    """Its shared embedding, scale and cap; the teacher's embedding is shared too."""
    fused = {"kd_loss_fn": {"name": "fused_linear_kl", "temperature": TEMPERATURE}}
    teacher = {"checkpoint": home["mpt"], "model": MPT | {"n_layers": 2}}
    student, rows = MPT | MODELS[kind], text(home["rows"])
    check(still(home["tokenizer"], student, rows, [teacher], distillation=fused))


@pytest.mark.parametrize("kind", ["tied", "soft cap", "ALiBi"])
def test_an_mpt_teacher_answers_from_its_checkpoint(home, tmp_path, kind):
    model = MPT | MODELS[kind]
    made = recipe(
        home["tokenizer"],
        model,
        text(home["rows"]),
        save_folder=str(tmp_path),
        save_filename="it.pt",
    )
    source = run(made)
    entry = {"checkpoint": str(tmp_path / "it.pt"), "model": model}
    trainer = still(home["student"], hf(home["student"]), text(home["rows"]), [entry])
    weights = teacher_of(trainer).state_dict()
    for name, tensor in source.state.model.state_dict().items():
        assert torch.equal(weights[name], tensor)
    check(trainer)


def test_an_hf_student_keeps_its_folder_s_weights(home):
    teacher = {"checkpoint": home["mpt"], "model": MPT | {"n_layers": 2}}
    trainer = still(home["student"], hf(home["student"]), finetuning(home["pairs"]), [teacher])
    own = LlamaForCausalLM.from_pretrained(home["student"])
    batch = first_batch(trainer)
    expected = by_hand(
        logits_of(own, batch), logits_of(teacher_of(trainer), batch), batch["labels"]
    )
    assert logged(trainer, "loss/train/kd")[0] == pytest.approx(expected, rel=1e-5)


def test_an_hf_teacher_as_llm_foundry_writes_it(home, tmp_path):
    made = recipe(
        home["teacher"],
        hf(home["teacher"]),
        text(home["rows"]),
        save_folder=str(tmp_path),
        save_filename="it.pt",
    )
    run(made)
    entry = {
        "checkpoint": str(tmp_path / "it.pt"),
        "model": hf(home["teacher"], init_device="mixed"),  # a teacher is whole all the same
    }
    trainer = still(home["tokenizer"], MPT, text(home["rows"]), [entry])
    check(trainer)
    # and the same file without its model, which a Composer checkpoint of transformers' tells
    trainer = still(
        home["tokenizer"], MPT, text(home["rows"]), [{"checkpoint": entry["checkpoint"]}]
    )
    check(trainer)


def test_lora_alone_trains_and_is_compared(home):
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    teacher = {"pretrained_model_name_or_path": home["teacher"]}
    model = hf(home["student"], peft_config=lora)
    check(still(home["student"], model, text(home["rows"]), [teacher]))
    distillation = {"teachers": [teacher], "kd_loss_fn": LOSS}
    trainer = run(recipe(home["student"], model, text(home["rows"]), distillation))
    before = LlamaForCausalLM.from_pretrained(home["student"]).state_dict()
    after = trainer.state.model.model.get_base_model().state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name.replace("q_proj.", "q_proj.base_layer.")], tensor)
    moved = [t for n, t in trainer.state.model.named_parameters() if "lora_B" in n]
    assert moved
    assert all(tensor.any() for tensor in moved)  # which begin at 0


PACKED = {"attn_config": {"attn_impl": "torch", "attn_uses_sequence_id": True}}


@pytest.fixture(scope="module")
def packing_teacher(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packing")
    config = recipe(
        home["tokenizer"],
        MPT | PACKED | {"n_layers": 2},
        text(home["rows"], eos_token_id=0),
        save_folder=str(folder),
        save_filename="it.pt",
    )
    run(config)
    return {"checkpoint": str(folder / "it.pt"), "model": MPT | PACKED | {"n_layers": 2}}


@pytest.mark.parametrize("microbatch", [1, 2])
def test_packed_sequences_do_not_see_each_other(home, packing_teacher, microbatch):
    packed = finetuning(home["pairs"], packing_ratio=2.0)
    trainer = still(
        home["tokenizer"],
        MPT | PACKED,
        packed,
        [packing_teacher],
        global_train_batch_size=2,
        device_train_microbatch_size=microbatch,
    )
    tokenizer = AutoTokenizer.from_pretrained(home["tokenizer"], model_max_length=LENGTH)
    # built anew: what the packer could not place it keeps for the next batch
    batch = next(iter(build_dataloader(copy.deepcopy(packed), tokenizer, 2).dataloader))
    assert batch["sequence_id"].max() > 0  # rows that hold several texts
    check(trainer, batch)
    # each text alone, cut out of its row: the same sum over the same positions
    total, count = 0.0, 0
    for row, ids in enumerate(batch["sequence_id"]):
        for number in range(int(ids.max()) + 1):
            where = (ids == number).nonzero().squeeze(1)
            alone = {
                k: batch[k][row, where][None] for k in ("input_ids", "attention_mask", "labels")
            }
            positions = where[None]  # MPT counts positions along the row
            logits = [
                model.model(
                    input_ids=alone["input_ids"],
                    attention_mask=alone["attention_mask"].bool(),
                    position_ids=positions,
                ).logits.detach()
                for model in (trainer.state.model, teacher_of(trainer))
            ]
            kept = int((alone["labels"][:, 1:] != -100).sum())
            if kept:
                total += by_hand(*logits, alone["labels"]) * kept
                count += kept
    assert count == int((batch["labels"][:, 1:] != -100).sum())  # none crosses
    assert logged(trainer, "loss/train/kd")[0] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("source", ["folder", "checkpoint"])
def test_another_tokenizer_is_told_before_the_first_batch(home, tmp_path, source):
    words = [*WORDS[:-1], "other"]
    folder = save_llama(tmp_path / "other", seed=4, words=words)
    entry = {"pretrained_model_name_or_path": folder}
    if source == "checkpoint":
        made = recipe(
            folder, MPT, text(home["rows"]), save_folder=str(tmp_path), save_filename="it.pt"
        )
        run(made)
        entry = {"checkpoint": str(tmp_path / "it.pt"), "model": MPT}
    distillation = {"teachers": [entry], "kd_loss_fn": LOSS}
    config = recipe(home["tokenizer"], MPT, text(home["rows"]), distillation)
    with pytest.raises(ValueError, match="tokenizer is not the student's") as caught:
        run(config)
    assert "fit" not in [frame.name for frame in caught.traceback]


def test_a_padded_vocabulary_is_cut(home):
    """MPT's vocabularies are padded; the tokenizer tells how many words are real."""
    teacher = {"pretrained_model_name_or_path": home["teacher"]}
    padded = MPT | {"vocab_size": 64}
    with pytest.raises(ValueError, match="vocab_size=31"):
        still(home["tokenizer"], padded, text(home["rows"]), [teacher])
    cut = {"vocab_size": 31}
    trainer = still(home["tokenizer"], padded, text(home["rows"]), [teacher], distillation=cut)
    batch = first_batch(trainer)
    student = logits_of(trainer.state.model, batch)[..., :31]
    expected = by_hand(student, logits_of(teacher_of(trainer), batch), batch["labels"])
    assert logged(trainer, "loss/train/kd")[0] == pytest.approx(expected, rel=1e-5)


def test_a_teacher_leaves_the_student_as_it_would_begin(home):
    """Building a teacher through LLM Foundry's registry draws from no stream of the student's."""
    entry = {"checkpoint": home["mpt"], "model": MPT | {"n_layers": 2}}
    optimizer = {"name": "decoupled_adamw", "lr": 0.0, "weight_decay": 0.0}
    alone = run(recipe(home["tokenizer"], MPT, text(home["rows"]), optimizer=optimizer))
    taught = still(home["tokenizer"], MPT, text(home["rows"]), [entry])
    for name, tensor in alone.state.model.state_dict().items():
        assert torch.equal(taught.state.model.state_dict()[name], tensor), name
