"""From verdict and history to a decision: the ladder of remedies, its cool-downs and its budget.

Mildest first. A spike is clipped, or held when clipping would follow a direction that means nothing. What a fresh batch
does not cure is in the weights: the damaged layer is repaired if one is found, else the learning rate is backed
off, else the run goes back to a good snapshot with a lower rate, lower each time the trouble returns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from typing import Any

from lightning_gradguard import checks
from lightning_gradguard.baseline import INSANE, Baseline
from lightning_gradguard.records import Blame, Decision, Form, GradientStatistics, Verdict

GENTLE = 10.0
"""Excess over the limit below which a spike is clipped; above, its direction is not worth following."""
FACTORS = (0.5, 0.3, 0.1)
"""Back-off factors within one episode: PaLM-like first, then fast, since a rate may be too high by orders of magnitude."""
SANE_UPDATE = 0.05
"""Update-to-weight ratio that a hopeless first rate is brought down to; healthy training shows 1e-4 to 1e-1."""
CURED = 2
"""Calm steps after which an alarm counts as cured: the next one is of another batch's making."""
FEW_LAYERS = 2
"""Layers that are repaired one by one in mid-run; where more are displaced an update did it, and the whole goes back."""
BY_CHANCE = 5e-5
"""Probability of a row of NaN that is taken for no chance: one in twenty runs of a thousand steps sees such a one."""
LEAST_FACTOR = 0.01
"""Smallest factor of one back-off in a young run; further ones can follow."""
SLOW = frozenset({"backoff", "rollback"})
"""Remedies that count against the budget of the run."""
LADDER = frozenset({"clip", "skip", "reinitialize"}) | SLOW
"""Remedies that the ladder chooses among; any other that is switched on accompanies the slow ones and the repairs."""
MENDING = frozenset({"reinitialize", "swap-activation"})
"""Remedies that do something about one layer: where none is switched on, knowing the layer changes nothing."""
YOUNG = 32
"""Accepted steps below which there is little to lose by going back."""


class Policy:
    """Decide which remedies answer a verdict.

    Args:
        patience: Alarming steps in one episode before a slow remedy (back-off, rollback) is tried.
        cooldown: Steps between two slow remedies, so that the first can show what it does.
        calm: Steps without alarm that end an episode.
        memory: Steps for which a past episode makes a new one *recurrent*.
        max_slow: Budget of slow remedies for the whole run; spent when one more is needed, and 0 means never one.
        max_repairs: Budget of layer repairs for one episode.
        max_held: Steps held in a row before the budget counts as spent.
    """

    def __init__(
        self,
        *,
        patience: int = 3,
        cooldown: int = 5,
        calm: int = 20,
        memory: int = 1000,
        max_slow: int = 20,
        max_repairs: int = 5,
        max_held: int = 100,
    ) -> None:
        self.patience = checks.whole("patience", patience, least=1)
        self.cooldown = checks.whole("cooldown", cooldown)
        self.calm = checks.whole("calm", calm, least=1)
        self.memory = checks.whole("memory", memory)
        self.max_slow = checks.whole("max_slow", max_slow)
        self.max_repairs = checks.whole("max_repairs", max_repairs)
        self.max_held = checks.whole("max_held", max_held, least=1)
        self.slow_used = 0
        self._past: list[int] = []
        self._treated: list[int] = []
        self._held = 0
        self._nans = 0
        self._calm = 0
        self._open_episode()

    def _open_episode(self) -> None:
        self.strikes = 0
        self._row = 0
        self._ordinary = 0
        self._convicted = 0
        self._quiet = 0
        self._slow = 0
        self._repairs = 0
        self._innocent = True
        self._untested = 0
        self._last_slow = -(10**9)

    def form(self, verdict: Verdict, step: int) -> Form:
        """Return the verdict's form, or ``recurrent`` when like trouble was calmed not long ago."""
        return (
            "recurrent"
            if len(self._recent(self._past, step)) >= 2 and verdict.form in ("sudden", "drift", "divergence")
            else verdict.form
        )

    def _recent(self, ends: Sequence[int], step: int) -> list[int]:
        """Return those of the steps at which past episodes ended that are still remembered."""
        return [end for end in ends if step - end <= self.memory]

    def decide(
        self,
        verdict: Verdict,
        statistics: GradientStatistics,
        *,
        blame: Sequence[Blame],
        baseline: Baseline,
        can: Collection[str],
    ) -> Decision:
        """Return what to do about ``verdict``.

        Args:
            verdict: An alarm.
            statistics: The step's gradients.
            blame: Suspects, worst first.
            baseline: What is known of healthy steps.
            can: Names of the remedies that are switched on.
        """
        step = statistics.step
        self.strikes += 1
        # Weights whose gradients are finite once are not broken; large gradients may pause for a step.
        cured = 1 if verdict.form == "non-finite" else CURED
        self._row = self._row + 1 if self._quiet < cured or self._row == 0 else 1
        self._quiet = 0
        self._nans += verdict.form == "non-finite"
        batch = any(b.layer == "batch" for b in blame)
        self._innocent = self._innocent and batch
        decision = self._answer(verdict, statistics, blame, batch, baseline, can)
        remedies = _available(decision.remedies, can)
        decision = self._spent(verdict, set(remedies)) or decision
        remedies = _available(decision.remedies, can)
        if "rollback" in remedies:
            self._convicted += self._row  # The weights brought these about, and no data.
        if SLOW & set(remedies):
            self._slow += 1
            self.slow_used += 1
            self._last_slow = step
        if "reinitialize" in decision.remedies:
            self._repairs += 1
            self._last_slow = step
        self._held = self._held + 1 if "skip" in remedies else 0
        # Weights that were gone back to, and that no update has touched since.
        self._untested = 0 if "skip" not in remedies else self._untested + ("rollback" in remedies)
        return dataclasses.replace(decision, remedies=remedies)

    @property
    def may_hold(self) -> bool:
        """Whether one more step may be held before the budget counts as spent."""
        return self._held + 1 < self.max_held

    def _spent(self, verdict: Verdict, wanted: Collection[str]) -> Decision | None:
        if self._held >= self.max_held:
            return Decision(("skip",), f"{self._held} steps in a row were held", exhausted=True)
        if self.slow_used >= self.max_slow and SLOW & set(wanted):
            # What the loss alone accuses has sane gradients, and a run that goes on regardless must not stand still.
            hold = ("skip",) if verdict.form not in ("drift", "divergence") else ()
            return Decision(hold, f"the budget of {self.max_slow} slow remedies is spent", exhausted=True)
        return None

    def _answer(
        self,
        verdict: Verdict,
        statistics: GradientStatistics,
        blame: Sequence[Blame],
        batch: bool,
        baseline: Baseline,
        can: Collection[str],
    ) -> Decision:
        if batch:
            return Decision(("skip",), "the batch itself is corrupt")
        if verdict.form == "rate":
            return Decision(
                ("backoff",), "held to the largest rate that it has lived with", factor=1.0 / verdict.excess
            )
        if verdict.form == "state":
            return Decision(("skip", "rollback"), "neither the data nor the rate is at fault")
        if verdict.form == "cold-start" and baseline.count:
            return Decision(("rollback",), "as if the first batch had never been: the optimizer would long remember it")
        damaged = [b.layer for b in blame if b.layer != "batch"] if MENDING & set(can) else []
        cooled = statistics.step - self._last_slow >= self.cooldown
        # A bad start may need layer after layer, and a damage that goes on the same again and again; later on, an explosion that
        # returns says that more is damaged.
        start = verdict.form == "cold-start" or baseline.count == 0
        returned = bool(self._recent(self._treated, statistics.step))
        repairs = self.max_repairs if start or verdict.examine else min(self.max_repairs, 1)
        # A run whose loss says that it is being destroyed goes back as a whole, not layer by layer.
        whole = verdict.form == "divergence" and not verdict.examine
        single = start or (not whole and len(damaged) <= FEW_LAYERS and baseline.count >= YOUNG and not returned)
        if damaged and single and self._repairs < repairs and (cooled or start):
            return Decision(("skip", "reinitialize"), f"{damaged[0]} is at fault")
        if verdict.examine:
            return Decision((), "no layer is found damaged: the data may have changed")
        if verdict.form == "cold-start":
            return self._cold_start(statistics)
        if verdict.form == "drift":
            return self._drift(statistics.step)
        if verdict.form == "divergence":
            if not cooled:
                return Decision((), "cooling down")
            return self._go_back(verdict.form, "the run has become worse than it was", statistics.step, baseline)
        if cooled and not self._untested and any(b.broken for b in blame):
            return self._go_back(verdict.form, "weights that are NaN or inf stay so", statistics.step, baseline)
        return self._burst(verdict, statistics.step, cooled, baseline)

    def _cold_start(self, statistics: GradientStatistics) -> Decision:
        ratio = statistics.update_ratio or 0.0
        if self.strikes < 2:
            return Decision(("skip",), "a first look: held while every layer's gain is measured")
        if ratio > 1.0:
            return Decision(
                ("skip", "backoff"), "no layer stands out: the rate is too high", SANE_UPDATE / ratio, permanent=True
            )
        return Decision(("skip",) if not statistics.finite else ("clip",), "no layer stands out")

    def _drift(self, step: int) -> Decision:
        if self._slow == 0:
            return Decision(("backoff",), "the norm grows and the loss does not fall", factor=0.5)
        if step - self._last_slow >= 10 * self.cooldown:
            return Decision(("skip", "rollback", "backoff"), "backing off did not stop the drift", factor=0.5)
        return Decision((), "cooling down")

    def _burst(self, verdict: Verdict, step: int, cooled: bool, baseline: Baseline) -> Decision:
        gentle = verdict.form == "sudden" and verdict.excess < GENTLE and not verdict.grave
        young = baseline.count < YOUNG
        hold = "clip" if gentle and not young else "skip"
        # Held steps leave the weights alone, so a third batch in a row that explodes accuses the weights; one that
        # comes after calm steps was a bad batch, however often that happens. A young run has little to lose by going
        # back, and most to lose by waiting.
        patience = min(self.patience, 2) if young or verdict.grave else self.patience
        if verdict.form == "non-finite":
            # Data that hold a NaN now and then make runs of them by chance: at two batches in five, three in a row
            # are common and eight are not. Broken weights make every batch one, and can wait.
            patience = max(3 * patience - 1, _row_by_chance(self._nans - self._row, self._calm)) if patience > 1 else 1
        elif patience > 1 and not verdict.grave:
            # The same of any bad batches between which others are as good as ever.
            patience = max(patience, _row_by_chance(self.strikes - self._row - self._convicted, self._ordinary))
        if self._row < patience or not cooled:
            return Decision((hold,), "first aid" if cooled else "cooling down")
        if self._untested:
            return self._innocent_rate()
        if gentle and self._slow == 0 and not young:
            return Decision(("backoff", hold), "spikes in a row", factor=FACTORS[0])
        return self._go_back(verdict.form, "fresh batches explode too, so the weights are damaged", step, baseline)

    def _innocent_rate(self) -> Decision:
        """Answer weights that were good, that no update has touched since they came back, and that explode all the same."""
        if self._untested > 1:
            return Decision(("skip",), "weights of two healthy times explode as well: the data or the loss is at fault")
        reason = "weights that were good explode as well: not the rate's fault, but they may have been damaged already"
        return Decision(("skip", "rollback", "backoff"), reason)

    def _go_back(self, form: Form, reason: str, step: int, baseline: Baseline) -> Decision:
        # A run that has learned nothing yet is as good as new.
        young = baseline.count < YOUNG or not baseline.learned
        rung = self._slow + young + len(self._recent(self._treated, step))
        factor = FACTORS[min(rung, len(FACTORS) - 1)]
        insane = young and baseline.update_ratio > INSANE
        if insane:
            # The first updates have told how far beyond a sane size they were.
            factor = min(factor, max(SANE_UPDATE / baseline.update_ratio, LEAST_FACTOR))
        if form == "non-finite" and self._slow == 0 and not insane:
            # A NaN is as often the data's fault as the rate's; only one that comes back speaks against the rate.
            return Decision(("skip", "rollback"), reason)
        return Decision(("skip", "rollback", "backoff"), reason, factor=factor, permanent=insane)

    def rest(self, step: int, *, ordinary: bool = False) -> bool:
        """Note a step without alarm; return True when that ends the episode.

        Args:
            step: Its number.
            ordinary: Whether its norm and its loss are as ever, which speaks for the weights: an alarm before it and one
                after it are the doing of two batches.
        """
        self._held = self._untested = 0
        if ordinary:
            self._row = 0
            self._ordinary += 1
        self._quiet += 1
        self._calm += 1
        if self.strikes == 0 or self._quiet < self.calm:
            return False
        if not self._innocent:
            self._past = [*self._recent(self._past, step), step]
        if self._slow:
            self._treated = [*self._recent(self._treated, step), step]
        self._open_episode()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the episode under way, the past ones and what is left of the budget."""
        return {k: v if not isinstance(v, list) else list(v) for k, v in vars(self).items() if k in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        for key in _STATE:
            setattr(self, key, state[key])


_STATE = (
    "strikes",
    "_row",
    "_ordinary",
    "_convicted",
    "slow_used",
    "_past",
    "_treated",
    "_held",
    "_nans",
    "_calm",
    "_quiet",
    "_slow",
    "_repairs",
    "_innocent",
    "_untested",
    "_last_slow",
)


def _row_by_chance(bad: int, good: int) -> int:
    """Return how many bad batches in a row the data alone may make, by their share before this row."""
    share = bad / (bad + good) if bad > 0 else 0.0
    return math.ceil(math.log(BY_CHANCE) / math.log(share)) if 0.0 < share < 1.0 else 0


def _available(remedies: Sequence[str], can: Collection[str]) -> tuple[str, ...]:
    """Drop what is switched off; a step that was to be held or clipped falls back to the other of the two.

    Remedies that the ladder does not know come last, where a slow remedy or a repair is called for, or would be if
    it were switched on: first aid to a single batch stays without consequences.
    """
    chosen = [r for r in remedies if r in can]
    if "skip" in remedies and "skip" not in can and "clip" in can:
        chosen.append("clip")
    if "clip" in remedies and "clip" not in can and "skip" in can:
        chosen.append("skip")
    if not {"clip", "skip"}.issuperset(remedies):
        chosen += sorted(set(can) - LADDER)  # in one order on all processes
    return tuple(chosen)
