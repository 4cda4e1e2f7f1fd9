"""Attacks: one file each, one registry.

An attack from outside imports `Attack`, `EvalContext` and `register_attack` from here; see `chip.plugins`.
"""

from chip.evaluation.attacks.base import ATTACKS, Attack, find_attacks, register_attack
from chip.evaluation.attacks.cross_modal import CrossModal
from chip.evaluation.attacks.depth import Depth
from chip.evaluation.attacks.in_context import InContext
from chip.evaluation.attacks.leak import Leak
from chip.evaluation.attacks.membership import Membership
from chip.evaluation.attacks.quantization import Quantization
from chip.evaluation.attacks.reconstruction import Reconstruction
from chip.evaluation.attacks.relearning import Relearning
from chip.evaluation.attacks.relearning_target import RelearningTarget
from chip.evaluation.attacks.steering import Steering
from chip.evaluation.attacks.trace import Trace
from chip.evaluation.attacks.wording import Wording
from chip.evaluation.context import EvalContext

__all__ = ["ATTACKS", "Attack", "EvalContext", "find_attacks", "register_attack"]

for _attack in (
    *(Reconstruction(), CrossModal(), InContext(), Wording(), Quantization(), Relearning(), Membership()),
    *(RelearningTarget(), Leak(), Trace(), Steering(), Depth()),
):
    register_attack(_attack)
