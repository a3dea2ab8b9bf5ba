"""The student without its adapters as its teacher: with PEFT, and with layers that are like its."""

import copy
from types import SimpleNamespace

import pytest
import torch
from composer.core import Event
from composer.models import HuggingFaceModel
from integration.harness import (
    Classifier,
    Spy,
    assert_close,
    assert_same,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
    trainer_for,
)
from integration.workers.adapters import adapted, trained_ones
from torch import nn
from torch.nn import functional as F

from composer_distill import AdapterFreeTeacher, Distillation, KLDivergence
from composer_distill.teachers.adapters import AdapterFree, check_adapters


def train(module, algorithms=(), **kwargs):
    options = {"optimizers": torch.optim.SGD(trained_ones(module), lr=0.5)}
    return fit(Classifier(module), algorithms, **{**options, **kwargs})


@pytest.mark.parametrize("microbatch_size", [10, 2])
def test_adapters_train_as_in_a_loop_by_hand(microbatch_size):
    term = Distillation(AdapterFreeTeacher(), forward_kl(), 0.5, 0.5)
    trained = train(adapted(), term, device_train_microbatch_size=microbatch_size)
    student, base = adapted(), mlp(0)
    for inputs, targets in loader():
        logits = student(inputs)
        kl = forward_kl()(logits, base(inputs).detach())
        gradients = torch.autograd.grad(
            0.5 * F.cross_entropy(logits, targets) + 0.5 * kl, trained_ones(student)
        )
        with torch.no_grad():
            for own, gradient in zip(trained_ones(student), gradients, strict=True):
                own.sub_(0.5 * gradient)
    assert_close(trained.state.model.module, student)
    assert logged(trained, "loss/train/kd")[0] > 0.01


def test_a_term_of_weight_0_changes_no_bit_of_the_run_and_no_mode():
    """The dropout stream and each module's own mode stay, and with them every weight."""

    def run(algorithms):
        module = adapted(dropout=0.5)
        module[1].eval()
        modes = Spy(Event.AFTER_LOSS, lambda state: [m.training for m in state.model.modules()])
        flags = Spy(Event.AFTER_LOSS, lambda state: [p.requires_grad for p in module.parameters()])
        return train(module, algorithms, callbacks=[modes, flags]), modes.seen, flags.seen

    plain, modes, flags = run(())
    # 1e-300 of any gradient is lost in rounding: the teacher runs, and moves nothing
    term = Distillation(AdapterFreeTeacher(), forward_kl(), 1e-300, 1.0)
    other, modes_too, flags_too = run(term)
    assert_same(other.state.model, plain.state.model)
    assert logged(other, "loss/train/kd")
    assert (modes_too, flags_too) == (modes, flags)


def test_the_base_answers_in_eval_mode_and_without_a_copy():
    seen = []
    module = adapted(dropout=0.5)
    module[2].register_forward_hook(
        lambda own, given, output: seen.append((own.training, torch.is_grad_enabled()))
    )
    train(module, Distillation(AdapterFreeTeacher(), forward_kl()))
    assert seen == [(True, True), (False, False)] * 2


def test_a_resumed_run_ends_bitwise_where_the_straight_one_ends(tmp_path):
    def trainer(**kwargs):
        module = adapted(dropout=0.5)
        return trainer_for(
            Classifier(module),
            Distillation(AdapterFreeTeacher(), KLDivergence(2.0), 0.5, 0.5),
            train_dataloader=loader(40, 10),
            optimizers=torch.optim.SGD(trained_ones(module), lr=0.5, momentum=0.9),
            **kwargs,
        )

    straight = trainer(save_folder=str(tmp_path), save_interval="2ba")
    straight.fit()
    straight.close()
    resumed = trainer(load_path=str(tmp_path / "ep0-ba2-rank0.pt"))
    resumed.fit()
    resumed.close()
    assert_same(resumed.state.model, straight.state.model)


def merged(module):
    module[0].merged = True
    return module


def unfrozen(module):
    module[0].base_layer.bias.requires_grad_(True)
    return module


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (mlp(0), "student has no adapters that can be passed over.*get_peft_model"),
        (merged(adapted()), "adapters are merged into its base"),
        (unfrozen(adapted()), r"trains 'module\.0\.base_layer\.bias' of its base too"),
    ],
)
def test_students_whose_base_can_not_be_run(module, match):
    with pytest.raises(ValueError, match=r"teacher 0 \(student without adapters\).*" + match):
        train(module, Distillation(AdapterFreeTeacher(), forward_kl()))


def test_all_of_an_adapter_but_what_it_wraps_is_its_own():
    module = adapted()
    module[0].counts = nn.ParameterDict({"default": torch.ones(1)})  # as AdaLoRA's, under no name
    check_adapters(module, "teacher 0")


def test_adalora_of_peft_is_an_adapter():
    peft = pytest.importorskip("peft")
    config = peft.AdaLoraConfig(task_type="CAUSAL_LM", total_step=10, target_modules=["c_attn"])
    check_adapters(peft.get_peft_model(gpt2(), config), "teacher 0")


class Saved(nn.Module):
    """A module that is trained as a copy of itself, as PEFT's are that name nothing as theirs."""

    def __init__(self, module):
        super().__init__()
        self.original_module = module.requires_grad_(False)
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(module)})
        self.modules_to_save.requires_grad_(True)
        self._disable_adapters = False


def test_a_module_that_is_trained_as_a_copy_is_an_adapter():
    module = nn.Sequential(Saved(nn.Linear(2, 2)))
    check_adapters(module, "teacher 0")
    module[0].original_module.bias.requires_grad_(True)
    with pytest.raises(ValueError, match=r"trains '0\.original_module\.bias' of its base too"):
        check_adapters(module, "teacher 0")


def gpt2(dropout=0.1):
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=16,
            n_embd=8,
            n_head=2,
            n_layer=2,
            n_positions=8,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
        )
        return GPT2LMHeadModel(config)


def with_lora(model, **kwargs):
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **kwargs)
        return peft.get_peft_model(model, config)


def texts():
    ids = torch.randint(0, 16, (4, 8), generator=torch.Generator().manual_seed(0))
    attention = (torch.arange(8) < torch.tensor([[8], [5], [8], [6]])).long()
    labels = torch.where(attention.bool(), ids, -100)
    return [{"input_ids": ids, "attention_mask": attention, "labels": labels}] * 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kwargs", [{}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}])
def test_lora_of_peft_is_taught_by_its_own_base(kwargs):
    """The same run as under a copy of the base, whatever else of PEFT is on."""
    base = gpt2()

    def run(teacher):
        student = HuggingFaceModel(with_lora(copy.deepcopy(base), **kwargs), use_logits=True)
        optimizer = torch.optim.SGD(trained_ones(student), lr=0.5)
        term = Distillation(teacher, KLDivergence(1.0), 0.5, 0.5)
        return fit(
            student,
            term,
            train_dataloader=texts(),
            optimizers=optimizer,
            device_train_microbatch_size=4,
        )

    ours, theirs = run(AdapterFreeTeacher()), run(copy.deepcopy(base))
    assert_same(ours.state.model, theirs.state.model)
    assert logged(ours, "loss/train/kd")[0] > 1e-4


@pytest.mark.filterwarnings("ignore")
def test_prompts_of_peft_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="no adapters that can be passed over"):
        check_adapters(peft.get_peft_model(gpt2(), config), "teacher 0")


def test_a_student_that_is_cut_is_refused():
    source = AdapterFree(AdapterFreeTeacher(), "teacher 0 (base)")
    with pytest.raises(ValueError, match=r"teacher 0 \(base\): FSDP gathers the student's weights"):
        source.prepare(SimpleNamespace(fsdp_config=object()), "auto")
