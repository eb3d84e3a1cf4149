"""Lightning's own tests, run with a guard in every Trainer: ``python -m tests.lightning_suite CHECKOUT``."""
