"""Adapters that are switched off as PEFT's are, and a scenario of them in several processes."""

import torch
from integration.harness import Classifier, fit, forward_kl, mlp
from integration.workers.common import found, share
from torch import nn

from composer_distill import AdapterFreeTeacher, Distillation


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, which is switched off as PEFT's layers are."""

    adapter_layer_names = ("down", "up")

    def __init__(self, base, seed):
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        shapes = (base.in_features, 2), (2, base.out_features)
        a, b = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
        self.down, self.up = nn.ParameterDict({"default": a}), nn.ParameterDict({"default": b})
        self.merged = self._disable_adapters = False

    def forward(self, inputs):
        outputs = self.base_layer(inputs)
        if self._disable_adapters:
            return outputs
        return outputs + 0.3 * inputs @ self.down["default"] @ self.up["default"]


def adapted(dropout=0.0):
    model = mlp(0, dropout=dropout)
    model[0], model[-1] = Adapted(model[0], 1), Adapted(model[-1], 2)
    return model


def trained_ones(module):
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def adapter_free(folder):
    module = adapted()
    term = Distillation(AdapterFreeTeacher(), forward_kl(), 0.5, 0.5)
    optimizer = torch.optim.SGD(trained_ones(module), lr=0.5)
    return found(fit(Classifier(module), term, train_dataloader=share(), optimizers=optimizer))
