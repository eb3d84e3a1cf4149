"""Policy: which remedy answers which alarm, for how long, and what becomes of it. Rooms of this folder only decide."""

from lightning_gradguard.policy.case import Case
from lightning_gradguard.policy.policy import Policy
from lightning_gradguard.policy.rate_bracket import RateBracket
from lightning_gradguard.policy.trial import Trial

__all__ = ["Case", "Policy", "RateBracket", "Trial"]
