"""A saved state is migrated, and tried on copies, before it is loaded; what does not fit is forgotten, or refused."""

from lightning_gradguard.checkpoint.migration import VERSION, migrate
from lightning_gradguard.checkpoint.rehearsal import rehearse
from lightning_gradguard.checkpoint.salvage import usable

__all__ = ["VERSION", "migrate", "rehearse", "usable"]
