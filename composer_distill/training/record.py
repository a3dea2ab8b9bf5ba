"""Who the teachers are, written into a checkpoint and compared where one is resumed."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from composer_distill.teachers.roster import check_same
from composer_distill.weights.fingerprint import NO_WEIGHTS

_log = logging.getLogger(__name__)

_RULE = "every byte"
_NAME = "Distillation"


class Peer(Protocol):
    """What is known of one instance's teachers from INIT on.

    Attributes:
        identities: Who each is, by the fingerprint of every byte.
        former_identities: Who each is, as former versions wrote it.
        verifies: Whether others are an error.
    """

    identities: list[str]
    former_identities: list[str]

    @property
    def verifies(self) -> bool: ...  # noqa: D102


def written(peers: Sequence[Peer]) -> dict[str, Any]:
    """Return plain types that tell who the teachers of all instances in a Trainer are."""
    identities = {str(index): peer.identities for index, peer in enumerate(peers)}
    return {"teachers": identities, "fingerprint_rule": _RULE}


def compare(saved: dict[str, Any], peers: Sequence[Peer]) -> None:
    """Compare what ``written`` returned in the run that wrote a checkpoint with the present run.

    A checkpoint of a former version is compared by its own fingerprints.

    Args:
        saved: What the checkpoint holds; nothing is compared where it tells of no teachers.
        peers: All instances in the Trainer.

    Raises:
        ValueError: Naming the first teacher that differs, of an instance that verifies its own.
    """
    former = "fingerprint_rule" not in saved
    for index, peer in enumerate(peers):
        teachers = saved.get("teachers", {}).get(str(index))
        if teachers is None or not peer.verifies:
            continue
        present = peer.former_identities if former else peer.identities
        check_same(teachers, present)
        for number, identity in enumerate(peer.identities):
            if identity.endswith(NO_WEIGHTS):
                _log.warning(
                    "teacher %d (%s) could not be verified beyond its class: it holds no weights. "
                    "Give its model a get_extra_state() that returns plain data telling it from "
                    "others.",
                    number,
                    identity,
                )


def keep_under_one_name(state: State, peers: Sequence[Peer]) -> None:
    """Let a Trainer whose instances are all of subclasses write and read the plain class's entry.

    Composer keeps an algorithm's state under the name of its class, and would not find it where a
    run is resumed with another class.
    """
    if all(type(algorithm).__qualname__ != _NAME for algorithm in state.algorithms):
        state.algorithms.append(_Entry(peers))


class _Entry(Algorithm):
    """Does nothing at any event; stands in the checkpoint as ``Distillation`` itself would."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._peers = peers

    def match(self, event: Event, state: State) -> bool:
        return False

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **written(self._peers)}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        compare(state, self._peers)

    def __repr__(self) -> str:
        return "what a checkpoint holds of Distillation"


_Entry.__qualname__ = _NAME  # by which Composer keeps its state
