"""Scores: mean, deviation and interval, and the table of them."""

from typing import Any

import numpy as np

from dreamjax.task import Score
from dreamjax.training.logbook import Logbook


def score(returns: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation, count and 95 % interval of the mean (normal) of returns [n]."""
    returns = np.asarray(returns, float)
    std = returns.std(ddof=1) if len(returns) > 1 else 0.0
    return _scored(returns.mean(), std, len(returns))


def published(paper: Score | None) -> dict[str, Any] | None:
    """A published score in the form of `score`; None of none."""
    return _scored(paper.mean, paper.std, paper.n) if paper else None


def _scored(mean: float, std: float, n: int) -> dict[str, Any]:
    half = 1.96 * std / np.sqrt(n)
    mean, std, low, high = (round(float(x), 1) for x in (mean, std, mean - half, mean + half))
    return {"mean": mean, "std": std, "n": n, "ci95": [low, high]}


def print_results(results: dict[str, Any], log: Logbook) -> None:
    """The score table."""
    log.say(f"{results['task']} ({results['profile']}), real game, return per episode")
    rows = [(name, results[name]) for name in ("random", "blind")]
    rows += [(name.partition(":")[2] or name, row) for name, row in results["policies"].items()]
    rows += [(name, results[name]) for name in ("paper", "ours") if results[name]]
    digits = 0 if max(abs(row["mean"]) for _, row in rows) >= 100 else 1
    wide = max(8, *(len(name) for name, _ in rows)) + 2
    log.say(f"{'':<{wide}}{'mean':>8} {'std':>8} {'n':>6}   95 % interval of the mean")
    for name, row in rows:
        low, high = row["ci95"]
        scored = f"{row['mean']:>8.{digits}f} ±{row['std']:>7.{digits}f} {row['n']:>6}"
        log.say(f"{name:<{wide}}{scored}   {low:.{digits}f} to {high:.{digits}f}")
    log.say(f"in the dream, ours: {results['dream']:.{digits}f}")


def listed(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
