"""Who the teachers are, written into a checkpoint and compared where one is resumed."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from composer_distill.teachers.roster import check_same
from composer_distill.training.companions import CompanionTrainer
from composer_distill.weights.fingerprint import NO_WEIGHTS

_log = logging.getLogger(__name__)

_RULE = "sums of words"
_NAME = "Distillation"


class Peer(Protocol):
    """What is known of one instance's teachers from INIT on.

    Attributes:
        identities: Who each is, by the fingerprint of every byte.
        former_identities: Who each is, as former versions wrote it.
        verifies: Whether others are an error.
        companions: What trains beside the student.
        followed: What those of them need that are made of the student.
    """

    identities: list[str]
    former_identities: list[str]
    companions: CompanionTrainer

    @property
    def verifies(self) -> bool: ...  # noqa: D102

    @property
    def followed(self) -> dict[str, Any]: ...  # noqa: D102

    def follow_on(self, saved: dict[str, Any]) -> None: ...  # noqa: D102


def written(peers: Sequence[Peer]) -> dict[str, Any]:
    """Return plain types that tell who the teachers of all instances in a Trainer are.

    What trains beside the student is bytes.
    """
    identities = {str(index): peer.identities for index, peer in enumerate(peers)}
    entry: dict[str, Any] = {"teachers": identities, "fingerprint_rule": _RULE}
    states = {str(i): p.companions.state_dict() for i, p in enumerate(peers) if p.companions.any}
    followed = {str(index): peer.followed for index, peer in enumerate(peers) if peer.followed}
    entry |= {"followed": followed} if followed else {}
    return {**entry, "companions": states} if states else entry


def compare(saved: dict[str, Any], peers: Sequence[Peer]) -> None:
    """Compare what ``written`` returned in the run that wrote a checkpoint with the present run.

    Fingerprints are compared by the rule that wrote them. By a rule that this version does not know
    teachers are told by class and size alone, which is said.

    Args:
        saved: What the checkpoint holds; nothing is compared where it tells of no teachers.
        peers: All instances in the Trainer.

    Raises:
        ValueError: Naming the first teacher that differs, of an instance that verifies its own.
    """
    for index, peer in enumerate(peers):
        companions = saved.get("companions", {}).get(str(index))
        if companions is not None and peer.companions.any:
            peer.companions.load_state_dict(companions)
    rule = saved.get("fingerprint_rule")
    if rule not in (None, _RULE):
        _log.warning(
            "the checkpoint's teachers are told by the rule %r, which this version does not know: "
            "their classes and sizes are compared, and not their weights.",
            rule,
        )
    for index, peer in enumerate(peers):
        peer.follow_on(saved.get("followed", {}).get(str(index), {}))
        teachers = saved.get("teachers", {}).get(str(index))
        if teachers is None or not peer.verifies:
            continue
        present = peer.identities if rule == _RULE else peer.former_identities
        if rule in (None, _RULE):
            check_same(teachers, present)
        else:
            check_same(_without_marks(teachers), _without_marks(present))
        for number, identity in enumerate(peer.identities):
            if identity.endswith(NO_WEIGHTS):
                _log.warning(
                    "teacher %d (%s) could not be verified beyond its class: it holds no weights. "
                    "Give its model a get_extra_state() that returns plain data telling it from "
                    "others.",
                    number,
                    identity,
                )


def _without_marks(identities: Sequence[str]) -> list[str]:
    return [identity.rpartition(", ")[0] for identity in identities]


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
