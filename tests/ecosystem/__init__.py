"""Libraries that are built on Lightning, accelerate or plain torch: ``python -m tests.ecosystem`` trains those that are
installed."""
