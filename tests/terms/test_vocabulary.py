import pytest
import torch
from torch import nn

from composer_distill import KLDivergence
from composer_distill.terms.vocabulary import (
    check_same_tokenizer,
    check_vocab_size,
    cut_vocabulary,
    explain_sizes,
    tokenizer_of,
)


class Words:
    """As much of a tokenizer as the check reads."""

    def __init__(self, *words, **special):
        self.words = list(words)
        self.special_tokens_map = special

    def get_vocab(self):
        return {word: index for index, word in enumerate(self.words)}

    def __len__(self):
        return len(self.words)


class TestCut:
    def test_the_cut_is_a_view_and_renormalises_over_the_real_words(self):
        logits = torch.randn(2, 3, 8)
        cut = cut_vocabulary(logits, 5, "the student")
        assert cut.data_ptr() == logits.data_ptr()
        real = logits.softmax(-1)[..., :5]
        expected = real / real.sum(-1, keepdim=True)
        torch.testing.assert_close(cut.softmax(-1), expected)

    def test_padding_to_unequal_sizes_leaves_the_loss_as_it_is(self):
        student, teacher = torch.randn(6, 5), torch.randn(6, 5)
        padded = [
            torch.cat([x, torch.full((6, n), value)], -1)
            for x, n, value in ((student, 3, 2.0), (teacher, 11, -1.0))
        ]
        loss = KLDivergence(temperature=1.0)
        cut = [cut_vocabulary(x, 5, "it") for x in padded]
        torch.testing.assert_close(loss(*cut), loss(student, teacher))
        # while keeping the phantom words of equally padded models does not
        kept = torch.cat([teacher, torch.zeros(6, 3)], -1)
        assert not torch.isclose(loss(padded[0], kept), loss(student, teacher))

    def test_none_keeps_all(self):
        logits = torch.zeros(1, 4)
        assert cut_vocabulary(logits, None, "it") is logits

    def test_classes_on_another_axis(self):
        assert cut_vocabulary(torch.zeros(2, 8, 3), 5, "it", axis=1).shape == (2, 5, 3)

    def test_a_cut_to_more_than_there_is_names_the_owner_and_both_numbers(self):
        with pytest.raises(ValueError, match=r"vocab_size=9 is more than the 4 classes of teach"):
            cut_vocabulary(torch.zeros(1, 4), 9, "teacher 0 (GPT2)")


class TestSize:
    def test_a_whole_number_passes(self):
        assert check_vocab_size(50257) == 50257
        assert check_vocab_size(None) is None

    @pytest.mark.parametrize("value", [1.5, "many", True])
    def test_another_kind_is_an_error(self, value):
        with pytest.raises(TypeError, match=r"vocab_size must be a whole number .*len\(tokenizer"):
            check_vocab_size(value)

    @pytest.mark.parametrize("value", [1, 0, -3])
    def test_too_small_is_an_error(self, value):
        with pytest.raises(ValueError, match=f"vocab_size must be at least 2, got {value}"):
            check_vocab_size(value)

    def test_unequal_sizes_are_explained_with_the_number_where_it_is_known(self):
        assert "vocab_size=50257" in explain_sizes(50304, 50257, 50257)
        assert "vocab_size=len(tokenizer)), at most 50257" in explain_sizes(50304, 50257)
        assert "len(tokenizer)" in explain_sizes(100, 200, 150)  # 150 does not fit in 100


class TestTokenizer:
    def test_equal_ones_pass_and_so_does_another_padding_token(self):
        one = Words("a", "b", "</s>", eos_token="</s>", pad_token="</s>")
        check_same_tokenizer(one, one, "teacher 0")
        check_same_tokenizer(one, Words("a", "b", "</s>", eos_token="</s>"), "teacher 0")

    def test_another_order_of_equal_size_is_refused(self):
        refusal = (
            r"^teacher 1 \(GPT2\): its tokenizer is not the student's: "
            "2 of the student's 3 tokens differ .id 1 is 'c', not 'b', id 2"
        )
        with pytest.raises(ValueError, match=refusal):
            check_same_tokenizer(Words("a", "b", "c"), Words("a", "c", "b"), "teacher 1 (GPT2)")

    def test_more_tokens_at_the_end_are_refused_until_they_are_cut(self):
        short, long = Words("a", "b"), Words("a", "b", "<tool>")
        with pytest.raises(ValueError, match="it has 3 tokens where the student's has 2"):
            check_same_tokenizer(short, long, "teacher 0")
        with pytest.raises(ValueError, match="1 of the student's 3 tokens differ .id 2 is None"):
            check_same_tokenizer(long, short, "teacher 0")
        check_same_tokenizer(short, long, "teacher 0", vocab_size=2)

    def test_another_special_token_is_refused(self):
        one, other = Words("a", "b", eos_token="a"), Words("a", "b", eos_token="b")
        with pytest.raises(ValueError, match="another eos_token: 'b' where the student's is 'a'"):
            check_same_tokenizer(one, other, "teacher 0")

    def test_a_model_s_tokenizer_is_found_behind_a_wrapper(self):
        class Model(nn.Module):
            tokenizer = Words("a")

        class Parallel(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = Model()

        assert tokenizer_of(Model()) is Model.tokenizer
        assert tokenizer_of(Parallel()) is Model.tokenizer
        assert tokenizer_of(nn.Linear(1, 1)) is None

    def test_real_tokenizers_are_told_apart(self):
        transformers = pytest.importorskip("transformers")
        tokenizers = pytest.importorskip("tokenizers")

        def make(words):
            core = tokenizers.Tokenizer(
                tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?")
            )
            return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")

        check_same_tokenizer(make(["?", "a", "b"]), make(["?", "a", "b"]), "teacher 0")
        with pytest.raises(ValueError, match="id 1 is 'b', not 'a'"):
            check_same_tokenizer(make(["?", "a", "b"]), make(["?", "b", "a"]), "teacher 0")
