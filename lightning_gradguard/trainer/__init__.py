"""What the callback finds in a Trainer, and puts there: loggers, clipping, processes, and what cannot be guarded."""
