"""What layers give in one forward, heard by hooks that live no longer than it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Tap:
    """A place in a model to listen at.

    Args:
        name: What errors call it.
        module: The layer.
        of: Whether its output or its input is wanted.
        key: The entry of the output that is wanted, such as ``'hidden_states'``; None for the first
            tensor. Where the model's ``config`` has ``output_<key>`` it is set for the forward, and
            the entry is taken out of the output again.
        index: Which element of that entry.
    """

    name: str
    module: nn.Module
    of: Literal["output", "input"] = "output"
    key: str | None = None
    index: int = 0


class Recorder:
    """Keeps what layers gave in one forward.

    Args:
        owner: Whose layers they are, for errors.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._handles: list[Any] = []
        self._undo: list[Callable[[], None]] = []
        self._heard: dict[Tap, list[tuple[Any, int | None]]] = {}

    def listen(self, taps: Iterable[Tap]) -> None:
        """Begin to listen at these places, beside those already listened at."""
        for tap in taps:
            if tap in self._heard:
                continue
            hooked = any((x.module, x.key) == (tap.module, tap.key) for x in self._heard)
            self._heard[tap] = []
            if tap.key is not None:
                if not hooked:
                    self._handles.append(self._hook_entry(tap.module, tap.key))
            elif tap.of == "output":
                self._handles.append(tap.module.register_forward_hook(self._on_output(tap)))
            else:
                hook = self._on_input(tap)
                handle = tap.module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
                self._handles.append(handle)

    def stop(self) -> None:
        """Listen no more; what was heard is kept."""
        for handle in self._handles:
            handle.remove()
        for undo in reversed(self._undo):
            undo()
        self._handles, self._undo = [], []

    def forget(self) -> None:
        """Listen no more, and keep nothing."""
        self.stop()
        self._heard = {}

    def value(self, tap: Tap) -> Tensor:
        """Return what a place gave, as it was when it gave it.

        Raises:
            TypeError: If it gave no tensor.
            ValueError: If it gave nothing, gave twice, or what it gave was overwritten.
        """
        heard = self._heard.get(tap, [])
        where = f"{self._owner}: the layer {tap.name!r}"
        if not heard:
            raise ValueError(
                f"{where} did not run in this forward, so there is nothing to compare. Name a "
                "layer that the forward calls as a module: what is compiled, or called by its "
                "forward(), is not heard."
            )
        if len(heard) > 1:
            raise ValueError(
                f"{where} ran {len(heard)} times in one forward, so which output is meant is not "
                "known. Name the layer around it, or pass a callable (model, outputs) -> tensor."
            )
        tensor, version = heard[0]
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{where} gave no tensor to compare, but {type(tensor).__name__}. Name another "
                "layer, or pass a callable (model, outputs) -> tensor."
            )
        if version is not None and tensor._version != version:
            raise ValueError(
                f"{where} gave a tensor that was overwritten afterwards by an operation in place, "
                "such as ReLU(inplace=True). Name the layer that overwrites it, or the block "
                "around both, or build the model with inplace=False."
            )
        return tensor.clone() if tensor.is_inference() else tensor

    def _note(self, tap: Tap, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.is_inference():
            self._heard[tap].append((tensor.clone(), None))  # which counts no versions
        else:
            version = tensor._version if isinstance(tensor, Tensor) else None
            self._heard[tap].append((tensor, version))

    def _on_output(self, tap: Tap) -> Callable[..., None]:
        def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            self._note(tap, first_tensor(output))

        return note

    def _on_input(self, tap: Tap) -> Callable[..., None]:
        def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._note(tap, first_tensor([*arguments, *named.values()]))

        return note

    def _hook_entry(self, module: nn.Module, key: str) -> Any:
        """Ask a Hugging Face model for an entry of its output, and take it out again."""
        config, flag = module.config, f"output_{key}"
        asked = bool(getattr(config, flag, False))
        if not asked:
            setattr(config, flag, True)
            self._undo.append(lambda: setattr(config, flag, False))

        def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
            entry = output.get(key) if isinstance(output, Mapping) else None
            states = list(entry or ())
            for tap in self._heard:
                if (tap.module, tap.key) == (module, key):
                    self._note(tap, states[tap.index] if tap.index < len(states) else None)
            if asked or not isinstance(output, Mapping):
                return None
            return type(output)(**{name: x for name, x in output.items() if name != key})

        # Before those who began earlier: the first of all takes the entry out again
        return module.register_forward_hook(note, prepend=True)


def first_tensor(value: Any) -> Any:
    """Return the first tensor of a layer's output, or the output where it holds none."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return next((x for x in value if isinstance(x, Tensor)), value)
    return value
