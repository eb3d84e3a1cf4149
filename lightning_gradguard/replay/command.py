"""``lightning-gradguard replay BUNDLE --module pkg.Module``: compute a bad step again, and say what is at fault."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lightning_gradguard.evidence import BundleError, read_bundle
from lightning_gradguard.replay.diagnosis import replay
from lightning_gradguard.replay.rebuild import ReplayError, named

ANSWERED, IMPOSSIBLE = 0, 1
REPLAY_EXIT_STATUS = (
    f"exit status: {ANSWERED} there is an answer; {IMPOSSIBLE} the step cannot be computed again (it says why); "
    "2 wrong usage."
)


def add_to(commands: Any) -> None:
    """Add the command to a command line."""
    told = (
        "compute the step of a bundle again: is it the data, the weights, or does it not reproduce; "
        "which operation, which sample"
    )
    one = commands.add_parser("replay", help=told, description=told, epilog=REPLAY_EXIT_STATUS)
    one.add_argument("bundle", type=Path, metavar="BUNDLE", help="a file of gradguard_evidence")
    how = one.add_mutually_exclusive_group(required=True)
    how.add_argument("--module", metavar="PKG.CLASS", help="class of the module, made from its saved hyperparameters")
    how.add_argument("--factory", metavar="PKG.FUNCTION", help="function without arguments that makes the module")
    one.add_argument("--ckpt", type=Path, metavar="FILE", help="checkpoint with the weights, where the bundle has none")
    one.add_argument(
        "--loss", metavar="PKG.FUNCTION", help="loss(module, batch), where the module has no training_step"
    )
    one.add_argument(
        "--batch", metavar="PKG.FUNCTION", help="function that returns the batch, where the bundle has none"
    )
    one.add_argument("--other", metavar="PKG.FUNCTION", help="function that returns another batch, to compare with")
    one.add_argument("--device", default="cpu", help="where to compute (default: cpu)")


def run(options: argparse.Namespace) -> int:
    """Carry the command out; return the exit status."""
    try:
        bundle = read_bundle(options.bundle)
        loss = named(options.loss) if options.loss else None
        batch, other = (named(name)() if name else None for name in (options.batch, options.other))
        answer = replay(
            bundle,
            named(options.module or options.factory),
            ckpt=options.ckpt,
            loss=loss,
            batch=batch,
            other=other,
            device=options.device,
        )
    except OSError as error:
        print(f"lightning-gradguard: cannot look into {error.filename}: {error.strerror}", file=sys.stderr)
        return IMPOSSIBLE
    except (ReplayError, BundleError) as error:
        print(f"lightning-gradguard: {error}", file=sys.stderr)
        return IMPOSSIBLE
    print(answer)
    for sentence in bundle.left_out:
        print(f"{'left out:':<11}{sentence}")
    return ANSWERED
