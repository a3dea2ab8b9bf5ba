"""What a student writes is what a loop samples, and it leaves no trace."""

import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from composer.core import Precision
from composer.devices import DeviceCPU
from on_policy.by_hand import EOS, PAD, batches, prompts_by_hand, student, write_by_hand

from composer_distill.on_policy import generation
from composer_distill.on_policy.generation import Sampling, continuations
from composer_distill.on_policy.text import left_padded, lengths


class State:
    """What of a Trainer's state is read."""

    device, precision, precision_config = DeviceCPU(), Precision.FP32, None


def written(model, prompts, **options):
    encoder_decoder = model.config.is_encoder_decoder
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids, mask = left_padded(rows, PAD)
    if encoder_decoder:  # an encoder's are padded behind
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
        mask = (ids != PAD).long()
    sampling = Sampling(
        ends=options.pop("ends", (EOS,)), pad=PAD, encoder_decoder=encoder_decoder, **options
    )
    made = continuations(State(), model, ids, mask, sampling)
    counted, _ = lengths(made, sampling.ends)
    return [row[:count].tolist() for row, count in zip(made, counted, strict=True)]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.5, "top_p": 0.7}, {"temperature": 0.0}], ids=str
)
def test_a_student_writes_what_a_loop_samples(kind, options, caplog):
    model = student(kind)
    # none of which belongs to the distribution that is learned on
    model.model.generation_config.update(top_k=2, repetition_penalty=3.0, min_new_tokens=9)
    prompts = prompts_by_hand(batches(size=6)[0])
    caplog.clear()
    found = written(model, prompts, max_new_tokens=10, seed=5, **options)
    assert not [each for each in caplog.records if each.name.startswith("transformers.generation")]
    expected = write_by_hand(model, prompts, 5, 10, **options)
    assert found == expected
    if kind != "t5" and options != {"temperature": 0.0}:
        assert len({len(row) for row in found}) > 1


def test_several_ends_and_none():
    model = student()
    prompts = prompts_by_hand(batches()[0])
    free = written(model, prompts, max_new_tokens=12, seed=1, ends=())
    assert free == write_by_hand(model, prompts, 1, 12, eos=None)
    assert {len(row) for row in free} == {12}
    some = written(model, prompts, max_new_tokens=12, seed=1, ends=(3, 4, EOS))
    for row in some:
        assert len(row) == 12 or row[-1] in (3, 4, EOS)
        assert not {3, 4, EOS} & set(row[:-1])


def test_no_stream_no_mode_and_no_gradient_is_left_behind():
    model = student(attn_pdrop=0.5, embd_pdrop=0.5)
    model.train()
    model.model.transformer.wte.eval()  # held so by its user
    modes = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    prompts = prompts_by_hand(batches()[0])
    first = written(model, prompts, max_new_tokens=6, seed=1)
    torch.rand(5)
    again = written(model, prompts, max_new_tokens=6, seed=1)
    assert first == again != written(model, prompts, max_new_tokens=6, seed=2)
    assert modes == {name: module.training for name, module in model.named_modules()}
    torch.set_rng_state(before[0])
    written(model, prompts, max_new_tokens=6, seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()  # no dropout wrote
    assert written(model, prompts, max_new_tokens=6, seed=1) == first


@pytest.mark.parametrize(
    ("made", "error", "match"),
    [
        (None, TypeError, "token ids, got NoneType"),
        (torch.zeros(4, 3), TypeError, "token ids, got torch.float32"),
        (torch.zeros(3, 3, dtype=torch.long), ValueError, r"shape \(4, n\)"),
        (torch.zeros(4, 7, dtype=torch.long), ValueError, "max_new_tokens=6"),
        (torch.zeros(4, 0, dtype=torch.long), ValueError, "1 <= n"),
        (torch.full((4, 3), -1), ValueError, "got -1 among them"),
    ],
)
def test_what_a_generate_fn_may_not_return(made, error, match):
    ids = torch.ones(4, 3, dtype=torch.long)
    with pytest.raises(error, match=match):
        continuations(State(), student(), ids, ids, Sampling(6), lambda *_: made)


def test_a_failing_generate_fn_is_named():
    def broken(model, prompts, attention_mask, sampling):
        raise KeyError("no server")

    ids = torch.ones(4, 3, dtype=torch.long)
    with pytest.raises(KeyError) as caught:
        continuations(State(), student(), ids, ids, Sampling(6), broken)
    assert "generate_fn" in "".join(caught.value.__notes__)


def test_a_student_writes_in_the_trainers_precision(monkeypatch):
    asked, entered = [], []

    @contextmanager
    def context(*arguments):
        asked.append(arguments)
        entered.append(True)
        yield
        entered.pop()

    def told(model, prompts, attention_mask, sampling):
        seen.append((bool(entered), torch.is_grad_enabled(), model.training))
        return prompts

    seen = []
    monkeypatch.setattr(generation, "get_precision_context", context)
    ids = torch.ones(4, 3, dtype=torch.long)
    continuations(State(), student().train(), ids, ids, Sampling(6), told)
    assert asked == [(Precision.FP32, None)]
    assert seen == [(True, False, False)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_student_writes_from_a_stream_of_its_own():
    from composer.devices import DeviceGPU

    class OnGPU:
        device, precision, precision_config = DeviceGPU(), Precision.AMP_BF16, None

    model = student().float().cuda()
    ids, mask = left_padded([torch.tensor([3, 4]), torch.tensor([5])], PAD)
    before, host = torch.cuda.get_rng_state(), torch.get_rng_state()
    first, again, other = (
        continuations(OnGPU(), model, ids, mask, Sampling(8, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), host)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.device.type == "cpu"
