"""What LLM Foundry finds under ``algorithms: {distillation: ...}``, by an entry point."""

from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from composer_distill.config.distillation import distillation_from_config
from composer_distill.distillation import Distillation


class FoundryDistillation(Algorithm):
    """A class, since LLM Foundry's registry takes no function; calling it gives a ``Distillation``.

    So a run's state is kept under one name, and it may go on in Python or from a YAML.
    """

    def __new__(cls, **config: Any) -> Distillation:
        """Return :func:`.distillation_from_config` of the keyword arguments."""
        return distillation_from_config(config)

    def match(self, event: Event, state: State) -> bool:
        """Never be asked: no instance of this class exists."""
        raise NotImplementedError

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Never be asked: no instance of this class exists."""
        raise NotImplementedError
