"""What the callback finds in a Trainer and puts there: who refuses, where the record goes, clipping, and other processes."""
