"""A Llama of random weights and texts of random tokens, in SmolLM2's and the news' place."""

import torch
import transformers

from composer_distill.demo.real.material import Material


def make_material(length=16, vocabulary=32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.3,
        )
        teacher = transformers.LlamaForCausalLM(config)
        train, tuning, held_out = (torch.randint(vocabulary, (n, length)) for n in (400, 8, 8))
    return Material(teacher, train, tuning, held_out)
