import pytest
import torch
from torch import nn

from composer_distill.terms.judging import check_mask_fn
from composer_distill.terms.positions import (
    align,
    aligned_labels,
    all_positions,
    attended_positions,
    default_positions,
    kept_positions,
    loss_positions,
    unread_mask,
)
from composer_distill.terms.task import Task

CAUSAL, MASKED, DECODER = Task(shift=True), Task(), Task(encoder_decoder=True)


def logits(*shape):
    return torch.zeros(*shape, 7)


def as_lists(mask):
    return mask.int().tolist()


# Each case is what a causal model's own loss counts: labels, then the positions that predict them
CAUSAL_CASES = {
    "plain": ([[1, 2, 3, 4]], [[1, 1, 1, 0]]),
    "right padding": ([[1, 2, 3, -100, -100]], [[1, 1, 0, 0, 0]]),
    "left padding": ([[-100, -100, 1, 2, 3]], [[0, 1, 1, 1, 0]]),
    "prompt masked": ([[-100, -100, -100, 4, 5]], [[0, 0, 1, 1, 0]]),
    "two packed documents": ([[1, 2, 3, -100, 5, 6]], [[1, 1, 0, 1, 1, 0]]),
    "nothing": ([[-100, -100]], [[0, 0]]),
    "only the first token": ([[1, -100]], [[0, 0]]),
    "pad is eos (2)": ([[1, 2, 3, 2], [1, 2, -100, -100]], [[1, 1, 1, 0], [1, 0, 0, 0]]),
}


@pytest.mark.parametrize(("labels", "expected"), CAUSAL_CASES.values(), ids=CAUSAL_CASES)
def test_causal_loss_positions_are_those_that_the_models_own_loss_counts(labels, expected):
    batch = {"labels": torch.tensor(labels)}
    assert as_lists(loss_positions(batch)) == expected
    assert as_lists(default_positions(batch, logits(*batch["labels"].shape), CAUSAL)) == expected
    # Against the loss itself: only logits at kept positions receive a gradient
    scores = torch.randn(*batch["labels"].shape, 7, requires_grad=True)
    shifted = nn.functional.cross_entropy(
        scores[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    shifted.backward()
    assert as_lists(scores.grad.abs().sum(-1) > 0) == expected


def test_without_the_shift_the_positions_are_the_labels_own():
    batch = {"labels": torch.tensor([[-100, 5, 6, -100]])}
    assert as_lists(loss_positions(batch, shift=False)) == [[0, 1, 1, 0]]


@pytest.mark.parametrize("batch", [{"input_ids": torch.zeros(1, 2)}, torch.zeros(2), [1]])
def test_loss_positions_need_labels(batch):
    with pytest.raises(ValueError, match=r"mask_fn=loss_positions needs labels .*got"):
        loss_positions(batch)


def test_attended_positions_read_padding_on_either_side():
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert as_lists(attended_positions({"attention_mask": mask})) == mask.tolist()


def test_attended_positions_prefer_the_decoders_mask():
    batch = {"attention_mask": torch.ones(1, 3), "decoder_attention_mask": torch.tensor([[1, 0]])}
    assert as_lists(attended_positions(batch)) == [[1, 0]]


@pytest.mark.parametrize("batch", [{}, {"attention_mask": torch.ones(2, 1, 3, 3)}, [1, 2]])
def test_attended_positions_are_all_where_no_mask_tells(batch):
    assert attended_positions(batch) is None


def test_all_positions_are_none():
    assert all_positions({"labels": torch.zeros(1)}, None) is None


def test_padding_is_never_read_from_a_token():
    ids = torch.tensor([[5, 2, 5, 2, 2]])  # 2 is both pad and the end of a sequence
    batch = {"input_ids": ids, "labels": torch.tensor([[5, 2, 5, 2, -100]])}
    assert as_lists(default_positions(batch, logits(1, 5), CAUSAL)) == [[1, 1, 1, 0, 0]]


class TestDefault:
    def test_a_masked_lm_counts_what_is_attended_and_not_only_what_was_masked(self):
        batch = {
            "attention_mask": torch.tensor([[1, 1, 0]]),
            "labels": torch.tensor([[-100, 4, -100]]),
        }
        assert as_lists(default_positions(batch, logits(1, 3), MASKED)) == [[1, 1, 0]]

    def test_an_encoder_decoder_counts_its_labels_though_the_encoder_has_equal_length(self):
        batch = {
            "attention_mask": torch.tensor([[1, 0, 0]]),
            "labels": torch.tensor([[4, 5, -100]]),
        }
        assert as_lists(default_positions(batch, logits(1, 3), DECODER)) == [[1, 1, 0]]

    def test_an_encoder_decoder_without_labels_never_reads_the_encoders_mask(self):
        batch = {"attention_mask": torch.tensor([[1, 0, 0]])}
        assert default_positions(batch, logits(1, 3), DECODER) is None
        batch["decoder_attention_mask"] = torch.tensor([[1, 1, 0]])
        assert as_lists(default_positions(batch, logits(1, 3), DECODER)) == [[1, 1, 0]]

    def test_a_causal_lm_without_labels_counts_what_is_attended(self):
        batch = {"attention_mask": torch.tensor([[0, 1, 1]])}
        assert as_lists(default_positions(batch, logits(1, 3), CAUSAL)) == [[0, 1, 1]]

    def test_one_answer_a_sequence_counts_whole(self):
        batch = {"attention_mask": torch.ones(2, 3), "labels": torch.tensor([0, 1])}
        assert default_positions(batch, logits(2), MASKED) is None

    def test_a_causal_model_that_classifies_sequences_counts_whole(self):
        batch = {"attention_mask": torch.ones(2, 3), "labels": torch.tensor([0, 1])}
        assert default_positions(batch, logits(2), CAUSAL) is None

    def test_images_count_whole(self):
        batch = (torch.zeros(2, 3, 8, 8), torch.zeros(2, 4, 4, dtype=torch.long))
        assert default_positions(batch, torch.zeros(2, 5, 4, 4), MASKED) is None

    def test_a_mask_over_other_positions_is_no_mask(self):
        assert default_positions({"attention_mask": torch.ones(1, 9)}, logits(1, 3), MASKED) is None

    def test_the_models_own_rule_brings_a_mask_to_its_frames(self):
        def every_other(length, mask):
            assert (length, mask.dtype) == (3, torch.long)
            return mask[:, ::2]

        batch = {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]], dtype=torch.int32)}
        task = Task(frames=every_other)
        assert as_lists(default_positions(batch, logits(1, 3), task)) == [[1, 1, 0]]
        assert unread_mask(batch, logits(1, 3), task) is None

    def test_a_tuple_of_a_causal_model_counts_its_labels(self):
        batch = (torch.zeros(1, 3), torch.tensor([[-100, 5, 6]]))
        assert as_lists(default_positions(batch, logits(1, 3), CAUSAL)) == [[1, 1, 0]]
        assert default_positions(batch, logits(1, 3), MASKED) is None


class TestUnread:
    MASK = torch.tensor([[1, 1, 1, 1, 0]])

    def test_a_mask_over_other_positions_is_not_read(self):
        unread = unread_mask({"attention_mask": self.MASK}, logits(1, 3), MASKED)
        assert as_lists(unread) == self.MASK.tolist()

    @pytest.mark.parametrize(
        ("batch", "shape", "task"),
        [
            ({"attention_mask": MASK}, (1, 5), MASKED),
            ({"attention_mask": MASK}, (1,), MASKED),
            ({"attention_mask": MASK}, (1, 3), DECODER),
            ({"attention_mask": MASK, "labels": torch.zeros(1, 3).long()}, (1, 3), CAUSAL),
            ({}, (1, 3), MASKED),
            ((MASK, MASK), (1, 3), MASKED),
        ],
        ids=["fits", "samples", "of the encoder", "labels tell", "no mask", "no mapping"],
    )
    def test_else_nothing_is_left_unread(self, batch, shape, task):
        assert unread_mask(batch, logits(*shape), task) is None


class TestKept:
    def test_loss_positions_take_the_shift_of_the_task(self):
        batch = {"labels": torch.tensor([[-100, 5, 6]])}
        kept = [
            kept_positions(loss_positions, batch, None, logits(1, 3), task)
            for task in (CAUSAL, MASKED, Task(shift=True, aligned=True))
        ]
        assert [as_lists(mask) for mask in kept] == [[[1, 1, 0]], [[0, 1, 1]], [[0, 1, 1]]]

    def test_a_users_function_sees_batch_and_outputs(self):
        seen = []

        def mask_fn(batch, outputs):
            seen.append((batch, outputs))
            return torch.tensor([[1, 0]])

        kept = kept_positions(mask_fn, "batch", "outputs", logits(1, 2), MASKED)
        assert seen == [("batch", "outputs")]
        assert kept.dtype == torch.bool
        assert as_lists(kept) == [[1, 0]]

    def test_a_mask_of_pixels_fits_classes_on_another_axis(self):
        kept = kept_positions(
            lambda b, o: torch.ones(2, 4, 4, dtype=torch.bool), None, None,
            torch.zeros(2, 5, 4, 4), MASKED, axis=1,
        )  # fmt: skip
        assert kept.shape == (2, 4, 4)

    @pytest.mark.parametrize("answer", [torch.ones(1, 2), [True], 1])
    def test_no_boolean_tensor_is_an_error(self, answer):
        with pytest.raises(TypeError, match=r"mask_fn \(<lambda>\) must return a boolean tensor"):
            kept_positions(lambda b, o: answer, None, None, logits(1, 2), MASKED)

    def test_a_mask_of_another_shape_is_an_error(self):
        with pytest.raises(ValueError, match=r"one value a position, \(1, 2\) .* got \(2,\)"):
            kept_positions(
                lambda b, o: torch.ones(2, dtype=torch.bool), None, None, logits(1, 2), MASKED
            )

    def test_what_is_no_function_is_an_error(self):
        with pytest.raises(TypeError, match="mask_fn must be callable .*got str.*loss_positions"):
            check_mask_fn("loss")


class TestLabels:
    def test_the_causal_shift_brings_each_label_to_the_position_that_predicts_it(self):
        labels = torch.tensor([[4, 5, 6], [7, -100, -100]])
        assert align(labels, CAUSAL).tolist() == [[5, 6, -100], [-100, -100, -100]]
        assert align(labels, MASKED).tolist() == labels.tolist()
        assert align(labels, Task(shift=True, aligned=True)).tolist() == labels.tolist()

    def test_labels_of_images_and_of_sequences_stand_as_they_are(self):
        labels = torch.tensor([1, 0])
        assert aligned_labels((None, labels), logits(2), MASKED).tolist() == [1, 0]
        assert aligned_labels({"labels": labels}, logits(2), MASKED).tolist() == [1, 0]

    @pytest.mark.parametrize(
        "batch",
        [{}, torch.zeros(2, 3), (1,), {"labels": torch.zeros(2, 7)}, (0, torch.zeros(5).long())],
    )
    def test_labels_that_do_not_fit_are_none(self, batch):
        assert aligned_labels(batch, logits(2), MASKED) is None


def test_what_no_position_reads_is_padding():
    """A mask from reader to what is read, as BERT takes it too."""
    attended = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    batch = {"attention_mask": attended[:, None, :].expand(2, 4, 4)}
    assert torch.equal(attended_positions(batch), attended.bool())
    packed = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).long()[None]
    assert attended_positions({"attention_mask": packed}).all()
