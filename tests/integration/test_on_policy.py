"""Students that write a share of their batches, in real Trainers."""

import copy

import pytest
import torch
from composer.algorithms import SAM
from composer.core import Event
from integration.harness import (
    Spy,
    assert_close,
    assert_differ,
    assert_same,
    entries_of,
    fit,
    logged,
    steps_of,
    train_by_hand,
    trainer_for,
    weights,
)
from on_policy.by_hand import (
    CONTEXT,
    EOS,
    PAD,
    batches,
    loader,
    prompts_by_hand,
    student,
    write_by_hand,
)
from torch import nn

from composer_distill import Distillation, KLDivergence, OnPolicy
from composer_distill.losses import JensenShannonDivergence, ReverseKLDivergence
from composer_distill.on_policy.drawing import is_drawn, stream_seed

LR, NEW = 0.3, 6


def jsd(student, teacher, beta):
    p, q = teacher.softmax(-1), student.softmax(-1)
    m = beta * p + (1 - beta) * q
    first = (p * (p.log() - m.log())).sum(-1)
    return (beta * first + (1 - beta) * (q * (q.log() - m.log())).sum(-1)).mean()


def reverse_kl(student, teacher):
    q = student.softmax(-1)
    return (q * (student.log_softmax(-1) - teacher.log_softmax(-1))).sum(-1).mean()


def forward_kl(student, teacher):
    return reverse_kl(teacher, student)


LOSSES = {
    "jsd": (JensenShannonDivergence(beta=0.5), lambda s, t: jsd(s, t, 0.5)),
    "jsd of 0.1": (JensenShannonDivergence(beta=0.1), lambda s, t: jsd(s, t, 0.1)),
    "forward": (KLDivergence(1.0), forward_kl),
    "reverse": (ReverseKLDivergence(1.0), reverse_kl),
}


def run(model, data, *algorithms, **options):
    options.setdefault("max_duration", "1ep")
    return fit(model, list(algorithms), train_dataloader=loader(data), lr=LR, **options)


def logits_at_continuation(model, prompt, own):
    """The logits that predict a continuation, in one forward without padding."""
    if model.config.is_encoder_decoder:
        start = torch.tensor([[PAD, *own[:-1]]])
        return model.model(input_ids=torch.tensor([prompt]), decoder_input_ids=start).logits[0]
    row = torch.tensor([[*prompt, *own]])
    return model.model(input_ids=row).logits[0, len(prompt) - 1 : -1]


def gkd_by_hand(model, teacher, data, distance, *, seed=0, n=NEW, sampling=None, drawn=None):
    """Train by generalized knowledge distillation, batch by batch, row by row."""
    hand = copy.deepcopy(model)
    for index, batch in enumerate(data):
        prompts = full_prompts(batch) if model.config.is_encoder_decoder else prompts_by_hand(batch)
        if drawn is None or drawn(index):
            own = write_by_hand(hand, prompts, stream_seed(seed, index, 0), n, **(sampling or {}))
        else:
            own = continuations_of(batch, prompts)

        def objective(module, pairs=list(zip(prompts, own, strict=True))):  # noqa: B008, B006
            rows = [logits_at_continuation(module, *pair) for pair in pairs]
            targets = [logits_at_continuation(teacher, *pair).detach() for pair in pairs]
            return distance(torch.cat(rows), torch.cat(targets))

        hand = train_by_hand(hand.train(), [batch], lambda module, _: objective(module), lr=LR)
    return hand


def full_prompts(batch):
    return [
        ids[mask == 1].tolist()
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def continuations_of(batch, prompts):
    rows = zip(full_prompts(batch), prompts, strict=True)
    return [row[len(prompt) :] for row, prompt in rows]


@pytest.mark.parametrize(
    ("kind", "name"), [*(("gpt2", name) for name in LOSSES), ("llama", "jsd"), ("t5", "jsd")]
)
def test_a_run_is_gkd_by_hand(kind, name):
    loss, distance = LOSSES[name]
    model, teacher, data = student(kind), student(kind, seed=1), batches(3, kind=kind)
    hand = gkd_by_hand(model, teacher, data, distance)
    first = copy.deepcopy(model)
    algorithms = OnPolicy(1.0, max_new_tokens=NEW), Distillation(teacher, loss, 1.0, 0.0)
    run(model, data, *algorithms)
    assert_close(model, hand, rtol=1e-5)
    assert_differ(model, first)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore")  # of the other library's own
def test_value_and_gradient_are_those_of_trl_on_the_same_text(beta):
    trl = pytest.importorskip("trl")
    model, teacher, data = student(), student(seed=1), batches(1)
    first, seen = copy.deepcopy(model), Spy(Event.BATCH_START, lambda state: state.batch)
    algorithm = Distillation(teacher, JensenShannonDivergence(beta=beta), 1.0, 0.0)
    trainer = run(model, data, OnPolicy(1.0, NEW), algorithm, callbacks=seen)
    (batch,) = seen.seen
    logits, targets = (
        m.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        for m in (first, teacher)
    )
    loss = trl.GKDTrainer.generalized_jsd_loss(
        logits, targets.detach(), labels=batch["labels"][:, 1:], beta=beta
    )
    assert logged(trainer, "loss/train/kd") == [pytest.approx(float(loss), rel=1e-6)]
    gradients = torch.autograd.grad(loss, list(first.parameters()))
    for own, before, gradient in zip(
        model.parameters(), first.parameters(), gradients, strict=True
    ):
        torch.testing.assert_close((before - own) / LR, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("size", [1, 3])
def test_temperature_nucleus_seed_and_microbatches(size):
    model, teacher, data = student(), student(seed=1), batches(2)
    sampling = {"temperature": 0.7, "top_p": 0.8}
    hand = gkd_by_hand(model, teacher, data, lambda s, t: jsd(s, t, 0.5), seed=4, sampling=sampling)
    counted = loader_of_tokens(data)
    fit(
        model,
        [OnPolicy(1.0, NEW, **sampling, seed=4), distil(teacher)],
        train_dataloader=counted,
        lr=LR,
        device_train_microbatch_size=size,
        accumulate_train_batch_on_tokens=True,
    )
    assert_close(model, hand, rtol=1e-5)


def loader_of_tokens(data):
    """A loader that says how many tokens of a batch carry a loss, which Composer weighs by."""
    from composer.core import DataSpec

    return DataSpec(
        loader(data),
        get_num_tokens_in_batch=lambda batch: {
            "total": int(batch["attention_mask"].sum()),
            "loss_generating": int((batch["labels"][:, 1:] != -100).sum()),
        },
    )


def distil(teacher, **options):
    return Distillation(teacher, JensenShannonDivergence(beta=0.5), 1.0, 0.0, **options)


def test_a_mixed_run_is_gkd_by_hand_and_batches_that_are_not_drawn_are_the_loaders_own():
    model, teacher, data = student(), student(seed=1), batches(6)
    seed = 3
    drawn = [is_drawn(0.5, seed, batch) for batch in range(6)]
    assert 0 < sum(drawn) < 6
    hand = gkd_by_hand(
        model,
        teacher,
        data,
        lambda s, t: jsd(s, t, 0.5),
        seed=seed,
        drawn=lambda index: drawn[index],
    )
    seen = Spy(Event.BATCH_START, lambda state: state.batch)
    given = Spy(Event.AFTER_DATALOADER, lambda state: state.batch)
    trainer = run(
        model, data, OnPolicy(0.5, NEW, seed=seed), distil(teacher), callbacks=[seen, given]
    )
    assert_close(model, hand, rtol=1e-5)
    for own, batch, expected, now in zip(given.seen, seen.seen, data, drawn, strict=True):
        for name in expected:  # the loader's batch itself is left as it was
            assert torch.equal(own[name], expected[name])
        assert (batch is own) is not now
    assert steps_of(trainer, "on_policy/mean_length") == [i for i in range(6) if drawn[i]]


@pytest.mark.parametrize("fraction", [0.0, 0, lambda state: 0.0])
def test_a_fraction_of_0_is_bitwise_the_run_without_it(fraction):
    data, teacher = batches(3), student(seed=1)
    plain, other = student(attn_pdrop=0.3), student(attn_pdrop=0.3)
    run(plain, data, distil(teacher))
    trainer = run(other, data, OnPolicy(fraction, NEW), distil(teacher))
    assert_same(other, plain)
    assert not [name for name in entries_of(trainer) if name.startswith("on_policy")]


def test_a_students_streams_are_as_they_were():
    """Dropout draws what it would have drawn, whatever was sampled to write."""
    data = batches(3)
    drawn = {}
    for fraction in (0.0, 1.0):
        streams = Spy(Event.BATCH_END, lambda state: torch.get_rng_state())
        model = student(attn_pdrop=0.0)

        def given(model, prompts, mask, sampling):
            torch.rand(17)
            return torch.full((len(prompts), 4), 5)

        run(model, data, OnPolicy(fraction, NEW, generate_fn=given), callbacks=streams)
        drawn[fraction] = streams.seen
    assert all(map(torch.equal, drawn[0.0], drawn[1.0]))


def test_a_fraction_may_be_a_schedule():
    data = batches(6)
    trainer = run(student(), data, OnPolicy(lambda state: float(state.timestamp.batch >= 4), NEW))
    assert steps_of(trainer, "on_policy/staleness") == [4, 5]
    with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\], got 1.5 at batch 0"):
        run(student(), data, OnPolicy(lambda state: 1.5, NEW))


def test_the_trainers_view_of_a_batch_is_what_the_student_wrote():
    model, (batch,) = student(), batches(1)
    seen = Spy(Event.AFTER_FORWARD, lambda state: state.batch)
    expected = write_by_hand(model, prompts_by_hand(batch), stream_seed(0, 0, 0), NEW)
    trainer = run(model, [batch], OnPolicy(1.0, NEW), callbacks=seen)
    (view,) = seen.seen
    for row, (prompt, own) in enumerate(zip(prompts_by_hand(batch), expected, strict=True)):
        attended = view["attention_mask"][row] == 1
        assert view["input_ids"][row][attended].tolist() == prompt + own
        labels = view["labels"][row]
        assert labels[labels != -100].tolist() == own
    lengths = [len(own) for own in expected]
    assert logged(trainer, "on_policy/mean_length") == [pytest.approx(sum(lengths) / 4)]
    ended = sum(own[-1] == EOS for own in expected) / 4
    assert logged(trainer, "on_policy/share_ended") == [pytest.approx(ended)]
    assert logged(trainer, "on_policy/staleness") == [0.0]
    assert logged(trainer, "on_policy/share_cut") == [0.0]
    (share,), (speed,) = (
        logged(trainer, f"on_policy/{n}") for n in ("generate_time", "tokens_per_second")
    )
    assert 0.0 < share <= 1.0
    assert speed > 0.0


def test_position_ids_count_anew_and_what_the_student_does_not_read_of_old_tokens_goes():
    (batch,) = batches(1)
    size, length = batch["input_ids"].shape
    batch["position_ids"] = torch.arange(length).expand(size, length) + 3
    batch["sequence_id"] = torch.zeros(size, length)
    batch["number"] = torch.arange(size)
    seen = Spy(Event.BATCH_START, lambda state: state.batch)
    run(student(), [batch], OnPolicy(1.0, NEW), callbacks=seen)
    (view,) = seen.seen
    width = view["input_ids"].shape[1]
    assert view["position_ids"].tolist() == [list(range(width))] * size
    assert view.keys() == {*batch} - {"sequence_id"}
    assert view["number"].tolist() == [0, 1, 2, 3]


def test_prompts_by_a_function_of_the_user():
    (batch,) = batches(1)
    del batch["labels"]
    seen = Spy(Event.BATCH_START, lambda state: state.batch)
    first_three = OnPolicy(1.0, NEW, prompt_fn=lambda batch: torch.arange(8) < 3)
    model = student()
    batch_by_hand = [ids[:3].tolist() for ids in batch["input_ids"]]
    expected = write_by_hand(model, batch_by_hand, stream_seed(0, 0, 0), NEW)
    data = [{**batch, "labels": batch["input_ids"]}]
    run(model, data, first_three, callbacks=seen)
    labels = seen.seen[0]["labels"]
    assert [row[row != -100].tolist() for row in labels] == expected


def test_prompts_that_fill_the_context_keep_their_last_tokens():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 13, (3, CONTEXT), generator=generator)
    labels = ids.clone()
    for row, start in enumerate((CONTEXT - 1, 20, 4)):
        labels[row, :start] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    seen = Spy(Event.BATCH_START, lambda state: state.batch)
    trainer = run(student(), [batch], OnPolicy(1.0, NEW), callbacks=seen)
    (view,) = seen.seen
    room = CONTEXT - NEW
    for row, start in enumerate((CONTEXT - 1, 20, 4)):
        prompt = view["input_ids"][row][
            (view["labels"][row] == -100) & (view["attention_mask"][row] == 1)
        ]
        assert prompt.tolist() == ids[row, :start].tolist()[-room:]
    assert view["input_ids"].shape[1] <= CONTEXT
    assert logged(trainer, "on_policy/share_cut") == [pytest.approx(2 / 3)]


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_continuations_that_end_at_once_train_on_their_end_alone(kind):
    data = batches(1, kind=kind)
    seen = Spy(Event.BATCH_START, lambda state: state.batch)
    model = student(kind)

    def ends(model, prompts, mask, sampling):
        return torch.full((len(prompts), 3), EOS)

    trainer = run(
        model, data, OnPolicy(1.0, NEW, generate_fn=ends), distil(student(kind, 1)), callbacks=seen
    )
    labels = seen.seen[0]["labels"]
    assert [row[row != -100].tolist() for row in labels] == [[EOS]] * 4
    assert logged(trainer, "on_policy/share_ended") == [1.0]
    assert logged(trainer, "on_policy/mean_length") == [1.0]
    assert all(bool(value.isfinite().all()) for value in weights(model).values())


@pytest.mark.filterwarnings("ignore:SAM has known issues")
def test_one_generation_serves_all_closures_and_microbatches_of_a_batch():
    calls, views = [], Spy(Event.AFTER_FORWARD, lambda state: state.batch["labels"].clone())

    def told(model, prompts, mask, sampling):
        calls.append(sampling.seed)
        return torch.randint(3, 13, (len(prompts), 4))

    model = student()
    run(
        model,
        batches(2),
        OnPolicy(1.0, NEW, generate_fn=told),
        SAM(rho=0.1),
        distil(student(seed=1)),
        callbacks=views,
        device_train_microbatch_size=2,
    )
    assert calls == [stream_seed(0, batch, 0) for batch in range(2)]
    assert len(views.seen) == 2 * 2 * 2
    for batch in range(2):
        first, second, *again = views.seen[4 * batch : 4 * batch + 4]
        assert torch.equal(first, again[0])
        assert torch.equal(second, again[1])


def test_texts_that_are_kept_train_in_the_place_of_later_batches():
    data, calls = batches(6), []

    def told(model, prompts, mask, sampling):
        calls.append(len(prompts))
        return torch.arange(len(prompts))[:, None].remainder(10) + torch.full((1, 2), 3)

    seen = Spy(Event.BATCH_START, lambda state: state.batch)
    trainer = run(
        student(), data, OnPolicy(1.0, NEW, generate_fn=told, buffer_batches=3), callbacks=seen
    )
    assert calls == [12, 12]
    assert logged(trainer, "on_policy/staleness") == [0, 1, 2, 0, 1, 2]
    assert steps_of(trainer, "on_policy/tokens_per_second") == [0, 3]
    assert [value > 0 for value in logged(trainer, "on_policy/generate_time")] == [
        True, False, False, True, False, False,
    ]  # fmt: skip
    for index, batch in enumerate(seen.seen):
        prompts = prompts_by_hand(data[index // 3 * 3])
        for row, prompt in enumerate(prompts):
            own = 3 + (index % 3 * 4 + row) % 10
            ids = batch["input_ids"][row][batch["attention_mask"][row] == 1]
            assert ids.tolist() == [*prompt, own, own]


@pytest.mark.parametrize("kept", [1, 4])
def test_a_resumed_run_ends_bitwise_where_the_straight_one_ends(kept, tmp_path):
    data, teacher = batches(6), student(seed=1)

    def start(**options):
        model = student(attn_pdrop=0.2)
        algorithms = OnPolicy(0.7, NEW, buffer_batches=kept, seed=1), distil(teacher)
        trainer = run(model, data, *algorithms, save_folder=str(tmp_path / "run"), **options)
        return model, trainer

    straight, first = start(
        save_interval="1ba", save_filename="ba{batch}.pt", save_latest_filename=None
    )
    for batch in (2, 3):
        resumed, second = start(
            load_path=str(tmp_path / "run" / f"ba{batch}.pt"),
            save_overwrite=True,
            save_interval="9ba",
        )
        assert_same(resumed, straight)
        name = "on_policy/mean_length"
        assert entries_of(second)[name] == [e for e in entries_of(first)[name] if e[0] >= batch]


def test_one_instance_in_several_trainers_and_fits_keeps_no_text_of_the_last():
    data, algorithm = batches(2), OnPolicy(1.0, NEW, buffer_batches=3)
    first, second = student(), student()
    run(first, data, algorithm)
    trainer = run(second, data, algorithm)
    assert_same(second, first)
    assert logged(trainer, "on_policy/staleness") == [0, 1]
    trainer = trainer_for(student(), [algorithm], train_dataloader=loader(data), lr=LR)
    trainer.fit()
    trainer.fit(duration="1ep", reset_time=True)
    trainer.close()
    assert logged(trainer, "on_policy/staleness") == [0, 1, 0, 1]


class LowRank(nn.Module):
    """A frozen layer and a product of two thin matrices beside it."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(WIDTH_IN, 2, bias=False).double()
        self.up = nn.Linear(2, width, bias=False).double()

    def forward(self, inputs):
        return self.layer(inputs) + self.up(self.down(inputs))


WIDTH_IN = 16


def test_students_with_adapters_of_low_rank():
    model, teacher, data = student(), student(seed=1), batches(2)
    model.requires_grad_(False)
    torch.manual_seed(0)
    block = model.model.transformer.h[0].attn
    block.c_attn = LowRank(block.c_attn, 3 * WIDTH_IN)
    before = copy.deepcopy(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    expected = write_by_hand(model, prompts_by_hand(data[0]), stream_seed(0, 0, 0), NEW)
    seen = Spy(Event.BATCH_START, lambda state: state.batch["labels"])
    run(
        model,
        data,
        OnPolicy(1.0, NEW),
        distil(teacher),
        callbacks=seen,
        optimizers=torch.optim.SGD(trainable, lr=LR),
    )
    assert [row[row != -100].tolist() for row in seen.seen[0]] == expected
    moved = {n for n, v in weights(model).items() if not torch.equal(v, weights(before)[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}


def test_students_of_peft():
    peft = pytest.importorskip("peft")
    from composer.models import HuggingFaceModel

    inner = student().model
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    model = HuggingFaceModel(inner, peft_config=config)
    data, seen = batches(2), Spy(Event.BATCH_START, lambda state: state.batch["labels"])
    expected = write_by_hand(model, prompts_by_hand(data[0]), stream_seed(0, 0, 0), NEW)
    run(model, data, OnPolicy(1.0, NEW), distil(student(seed=1)), callbacks=seen)
    assert [row[row != -100].tolist() for row in seen.seen[0]] == expected


@pytest.mark.parametrize("compiled", ["by the Trainer", "inside"])
def test_compiled_students(compiled):
    data, teacher = batches(2), student(seed=1)
    plain, other = student(), student()
    run(plain, data, OnPolicy(1.0, NEW), distil(teacher))
    options = {}
    if compiled == "inside":
        other.model.compile(backend="eager")
    else:
        options = {"compile_config": {"backend": "eager"}}
    run(other, data, OnPolicy(1.0, NEW), distil(teacher), **options)
    assert_close(other, plain)


def test_a_tokenizer_whose_padding_is_its_end(tmp_path):
    model, data = student(), batches(2)
    assert model.config.pad_token_id is None  # so that text is padded by its end
    hand = gkd_by_hand(model, student(seed=1), data, lambda s, t: jsd(s, t, 0.5))
    seen = Spy(Event.BATCH_START, lambda state: state.batch)
    run(model, data, OnPolicy(1.0, NEW), distil(student(seed=1)), callbacks=seen)
    assert_close(model, hand, rtol=1e-5)
    (first, _) = seen.seen
    assert (first["input_ids"][first["attention_mask"] == 0] == EOS).all()
    assert (first["labels"] == EOS).any()


BAD = [
    ({"fraction": 1.5}, ValueError, r"fraction must lie in \[0, 1\], got 1.5"),
    ({"fraction": float("nan")}, ValueError, "fraction must lie in"),
    ({"fraction": "all"}, TypeError, "fraction must be a number or a callable"),
    ({"max_new_tokens": 0}, ValueError, r"max_new_tokens must lie in \[1, inf\)"),
    ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens must be an integer, got float"),
    ({"temperature": -1.0}, ValueError, "temperature must lie in"),
    ({"top_p": 0.0}, ValueError, r"top_p must lie in \(0, 1\]"),
    ({"seed": 0.5}, TypeError, "seed must be an integer"),
    ({"prompt_fn": 3}, TypeError, r"prompt_fn must be callable as \(batch\)"),
    ({"generate_fn": 3}, TypeError, "generate_fn must be callable"),
    ({"buffer_batches": 0}, ValueError, "buffer_batches must lie in"),
]


@pytest.mark.parametrize(("arguments", "error", "match"), BAD, ids=str)
def test_bad_arguments_are_refused_by_name(arguments, error, match):
    with pytest.raises(error, match=match):
        OnPolicy(**arguments)


class Silent(nn.Module):
    """A student that can't write."""


def test_what_is_refused_before_anything_is_trained():
    from integration.harness import Classifier, mlp

    with pytest.raises(TypeError, match="a Classifier has no generate"):
        fit(Classifier(mlp(0)), OnPolicy())
    with pytest.raises(ValueError, match="leaves no room for a prompt: .* 24 positions"):
        run(student(), batches(1), OnPolicy(max_new_tokens=24))
    with pytest.raises(ValueError, match="a Trainer takes one OnPolicy"):
        run(student(), batches(1), OnPolicy(1.0, NEW), OnPolicy(1.0, NEW))
    with pytest.raises(ValueError, match="prompt_fn chooses the prompt of a decoder alone"):
        run(student("t5"), batches(1), OnPolicy(1.0, NEW, prompt_fn=lambda batch: None))


@pytest.mark.parametrize(
    ("change", "options", "error", "match"),
    [
        ({"labels": None}, {}, ValueError, "needs 'labels' of shape"),
        ({"input_ids": None}, {}, ValueError, "needs 'input_ids' of shape"),
        ({"attention_mask": torch.zeros(4, 8)}, {}, ValueError, "no prompt in row 0"),
        ({"token_type_ids": torch.zeros(4, 8)}, {}, ValueError, "can't tell what 'token_type_ids'"),
        ({"number": torch.arange(4)}, {"buffer_batches": 2}, ValueError, r"\['number'\]"),
        ({}, {"prompt_fn": lambda batch: 3}, TypeError, "prompt_fn must return a boolean tensor"),
        ({}, {"prompt_fn": lambda b: torch.ones(3).bool()}, ValueError, r"mask of shape \(4, 8\)"),
        ({}, {"prompt_fn": lambda b: torch.zeros(8).bool()}, ValueError, "chosen by prompt_fn"),
    ],
)
def test_batches_that_cant_be_continued_are_refused(change, options, error, match):
    (batch,) = batches(1)
    batch = {name: value for name, value in {**batch, **change}.items() if value is not None}
    data = [batch]
    with pytest.raises(error, match=match):
        fit(
            student(),
            OnPolicy(1.0, NEW, **options),
            train_dataloader=data,
            device_train_microbatch_size=2,
        )


def test_the_text_of_the_algorithm_holds_no_address():
    text = repr(OnPolicy(lambda state: 0.5, generate_fn=lambda *_: None))
    assert "0x" not in text
    assert "max_new_tokens=128" in text
