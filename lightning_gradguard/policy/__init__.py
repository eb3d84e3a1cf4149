"""Policy: which remedy answers which alarm, for how long, and what becomes of it. Rooms of this folder only decide."""

from lightning_gradguard.policy.policy import GENTLE, Case, Policy
from lightning_gradguard.policy.rate_bracket import RateBracket
from lightning_gradguard.policy.trial import Trial

__all__ = ["GENTLE", "Case", "Policy", "RateBracket", "Trial"]
