"""A run's log as a small table of its learning curves: `python condense.py log.jsonl > seed1.csv`.

One row for every ten iterations: the mean of each curve over them. `train_s` is training alone: an
iteration that takes more than three times the median, a process's first, compiles kernels, and its
time is left out.
"""

import csv
import json
import statistics
import sys
from pathlib import Path

ITERATIONS = 10
CURVES = (
    *("Train/mean_reward", "Episode/mxd", "Episode/fall_rate", "Episode/completed"),
    *("Episode/speed", "Episode/velocity_ratio", "Episode/mev", "Level/mean"),
    *("Level/steps", "Level/gap", "Level/hurdle", "Level/ramps", "Level/mixed"),
    *("Torque/rms_nm", "Torque/saturation", "Policy/action_std", "Loss/value", "Loss/estimator"),
    "Perf/env_steps_per_s",
)


def condense(log: str) -> list[list[str]]:
    """Header and rows for the text of a `log.jsonl`; iterations short of ten at the end are cut."""
    rows = [json.loads(line) for line in log.splitlines()]
    took = [row["Perf/collect_s"] + row["Perf/learn_s"] for row in rows]
    usual = statistics.median(took)
    train_s, table = 0.0, [["iteration", "env_steps", "train_s", *CURVES]]
    for begin in range(0, len(rows) - ITERATIONS + 1, ITERATIONS):
        some = rows[begin : begin + ITERATIONS]
        train_s += sum(s for s in took[begin : begin + ITERATIONS] if s <= 3.0 * usual)
        means = []
        for curve in CURVES:
            values = [row[curve] for row in some if curve in row]
            means.append(f"{statistics.fmean(values):.4g}" if values else "")
        last = some[-1]
        table.append([str(last["iteration"]), str(last["env_steps"]), f"{train_s:.1f}", *means])
    return table


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python condense.py log.jsonl > curves.csv")
    csv.writer(sys.stdout, lineterminator="\n").writerows(condense(Path(sys.argv[1]).read_text()))
