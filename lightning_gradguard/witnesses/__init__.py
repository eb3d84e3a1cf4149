"""Witnesses: numbers that may move before the gradient does, taken once a window.

None of them raises an alarm or changes a decision. Each is a scalar on the board, and evidence in an incident where it
had left its usual level before the first alarm. The size of updates and Adam's second moment are watched by default;
:class:`AttentionLogits` and :class:`RouterLoad` hook modules, and have to be asked for.
"""

from lightning_gradguard.witnesses.attention_logits import AttentionLogits
from lightning_gradguard.witnesses.router_load import RouterLoad
from lightning_gradguard.witnesses.witness import Witness

__all__ = ["AttentionLogits", "RouterLoad", "Witness"]
