"""``python -m lightning_gradguard``: the command line."""

from lightning_gradguard.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
