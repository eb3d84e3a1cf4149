"""Runs that need no guard: every recipe with several optimizers and schedules."""

from __future__ import annotations

from functools import cache

from benchmarks.field.recipes import all_recipes
from benchmarks.field.training import ADVERSARIAL, OPTIMIZERS, SCHEDULES, Run

LBFGS_CANNOT = {"accumulate", "clipped", "batch_of_one", "policy_gradient", "actor_critic", "stochastic_depth", "thaw"}


@cache
def healthy_runs() -> tuple[Run, ...]:
    """Give every recipe three combinations in turn, and one recipe all optimizers."""
    optimizers, schedules = list(OPTIMIZERS), list(SCHEDULES)
    runs: dict[str, Run] = {}
    for i, recipe in enumerate(all_recipes()):
        turns = range(len(optimizers)) if recipe.name in ("regression", "cnn_batchnorm") else range(0, 9, 3)
        for k in turns:
            # 17 optimizers and 5 schedules: the strides are coprime to them, so that all pairs come up
            optimizer = optimizers[(5 * i + k) % len(optimizers)]
            schedule = schedules[(2 * i + k) % len(schedules)]
            if optimizer == "lbfgs" and recipe.name in LBFGS_CANNOT:
                optimizer = "adamw"
            name = f"{recipe.name}, {optimizer}, {schedule}"
            runs[name] = Run(name, recipe, optimizer, schedule)
    for recipe in ADVERSARIAL:
        runs[recipe.name] = Run(recipe.name, recipe, "adam 1e-3")
    return tuple(runs.values())
