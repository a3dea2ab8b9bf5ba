import pytest
import torch

from composer_distill.terms.features.masks import kept_rows, mask_for


def padded(tokens, length):
    return torch.arange(length) < torch.tensor(tokens)[:, None]


def test_a_mask_fn_must_return_a_tensor():
    with pytest.raises(TypeError, match="mask_fn must return a boolean tensor or None, got list"):
        mask_for(lambda batch, outputs: [True], {}, None, torch.zeros(2, 3), "layer")


def test_layers_of_an_encoder_have_the_encoders_padding():
    encoder, decoder = padded([3, 2], 4), padded([4, 1], 4)
    view = {
        "input_ids": torch.zeros(2, 4, dtype=torch.long),
        "attention_mask": encoder.long(),
        "decoder_attention_mask": decoder.long(),
    }
    features = torch.zeros(2, 4, 5)
    for name, expected in (("model.encoder.layers.1", encoder), ("decoder.block.0", decoder)):
        mask = mask_for(None, view, None, features, name)
        assert mask is not None
        assert torch.equal(mask, expected)
    assert mask_for(None, view, None, torch.zeros(2, 7, 5), "encoder.layers.1") is None


def test_a_loss_that_knows_no_mask_gets_the_kept_positions_as_rows():
    mask, features = padded([3, 1], 4), torch.arange(24.0).view(2, 4, 3)
    student, teacher = kept_rows((features, 2 * features), mask, "term")
    assert student.tolist() == [*features[0, :3].tolist(), features[1, 0].tolist()]
    assert torch.equal(teacher, 2 * student)
    (whole,) = kept_rows((features,), None, "term")
    assert whole is features
    with pytest.raises(ValueError, match=r"'term': its loss knows no mask.*\(2, 3, 4, 4\)"):
        kept_rows((torch.zeros(2, 3, 4, 4),), mask, "term")
