import subprocess
import sys

import pytest
from torch import nn

from composer_distill.terms.task import Task, task_of


class Wrapper(nn.Module):
    def __init__(self, module, **attributes):
        super().__init__()
        self.module = module
        vars(self).update(attributes)


def tiny_gpt2():
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=9, n_positions=4, n_embd=4, n_layer=1, n_head=1)
    )


class TestTask:
    def test_the_models_own_word_decides(self):
        assert task_of(Wrapper(Wrapper(nn.Linear(1, 1), shift_labels=True))) == Task(shift=True)
        assert task_of(Wrapper(tiny_gpt2(), shift_labels=False)) == Task()

    def test_a_registered_causal_class_is_found_inside_any_wrapper(self):
        assert task_of(Wrapper(Wrapper(tiny_gpt2()))) == Task(shift=True)

    def test_a_subclass_of_a_registered_class_is_causal(self):
        transformers = pytest.importorskip("transformers")

        class Mine(transformers.GPT2LMHeadModel):
            pass

        config = transformers.GPT2Config(vocab_size=9, n_positions=4, n_embd=4, n_layer=1, n_head=1)
        assert task_of(Mine(config)) == Task(shift=True)

    def test_a_plain_module_is_no_language_model(self):
        assert task_of(nn.Linear(2, 2)) == Task()

    def test_transformers_is_not_imported_for_it(self):
        code = (
            "import sys, torch; from composer_distill.terms.task import task_of; "
            "sys.modules.pop('transformers', None); task_of(torch.nn.Linear(1, 1)); "
            "assert 'transformers' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def test_a_familys_encoder_alone_is_no_pair():
    """T5's token classifier has a configuration that says it is one."""
    sizes = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1}
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(**sizes, num_heads=2, num_labels=3)
    assert not task_of(transformers.T5ForTokenClassification(config)).encoder_decoder
    assert task_of(transformers.T5ForConditionalGeneration(config)).encoder_decoder
