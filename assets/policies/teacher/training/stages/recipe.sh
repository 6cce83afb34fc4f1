#!/usr/bin/env bash
# From stage 4 to a student that drives and stops: each step one command, resumable by calling it again.
#
#   recipe.sh teachers | choose | strict | distil | finetune | report RUN | all
#
# Two GPUs and 24 spare cores, 26 minutes in all. Settings by environment:
#   RUNS=runs/drive   where the runs go
#   TINY=1            everything on the processor, at sizes that learn nothing
set -euo pipefail

stages=$(cd "$(dirname "$0")" && pwd)
runs=${RUNS:-runs/drive}
trainer=(${PYTHON:-python} -m krabby_trainer)
drive=(robot=crab_hex_rs terrain=wild motion=upright commands=drive)
endless=(agent.max_iterations=1000000 run.checkpoint_minutes=1)
both=(${PYTHON:-python} -m torch.distributed.run --standalone --nproc-per-node 2 -m krabby_trainer)
teacher_size=(env.num_envs=16384) distil_size=(env.num_envs=4096 agent.max_iterations=150) student_size=(env.num_envs=8192)
first=5 strict=7 distil=6 finetune=4.5 cores=12 cells='*' trials=4
if [ -n "${TINY:-}" ]; then
    tiny=(device=cpu env.terrain.levels=2 env.terrain.columns=29 run.checkpoint_minutes=0)
    teacher_size=("${tiny[@]}" env.num_envs=29 agent.num_steps_per_env=4)
    distil_size=("${tiny[@]}" env.num_envs=29 agent.max_iterations=1 agent.num_steps_per_env=12)
    student_size=("${tiny[@]}" env.num_envs=29 agent.num_steps_per_env=12 agent.finetuning.critic_iterations=1)
    first=0.01 strict=0.01 distil=0.01 finetune=0.01 cores=1 cells='flat-vx0.5' trials=1
    both=("${trainer[@]}")
fi

# train GPU KEY=VALUE...: a run, or its continuation where its folder has a checkpoint.
train() { CUDA_VISIBLE_DEVICES=$1 "${trainer[@]}" train "${@:2}"; }
begun() { ls "$1"/checkpoints/*.pt >/dev/null 2>&1; }

teachers() { # GPU 0: stage 4 with the present rewards; GPU 1: from nothing, at loose speeds
    local a=(run.resume="$stages/../stage4.pt" run.dir="$runs/a")
    begun "$runs/a" && a=(run.resume="$runs/a")
    train 0 "${a[@]}" "${drive[@]}" env.reward.fall=-200 "${endless[@]}" "${teacher_size[@]}" run.max_minutes=$first &
    local b=(run.dir="$runs/b" run.resume=auto robot=crab_hex_rs terrain=wild motion=sparing env.grounded_s=0.5 env.reward.tilt=-1
        "env.randomisation.mass_factor=[0.9,1.2]" seed=2)
    train 1 "${b[@]}" "${endless[@]}" "${teacher_size[@]}" run.max_minutes=$first &
    wait -n && wait -n
}

choose() { # the run whose levels are higher on what stage 4 failed
    "${trainer[0]}" - "$runs" <<'PY'
import json, sys
from pathlib import Path

runs = Path(sys.argv[1])
hard = ("gap", "leg-gap", "ramps", "stairs", "stepping-stones", "beam", "slope", "side-slope")
score = {}
for name in ("a", "b"):
    lines = (runs / name / "log.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "Level/gap" in row][-10:]
    if not rows:  # the first lines have no levels
        print(f"{name}: no levels in its log yet")
    found = {kind: sum(row[f"Level/{kind}"] for row in rows) / max(len(rows), 1) for kind in hard}
    score[name] = sum(found.values()) / len(hard)
    print(f"{name}: {score[name]:.2f} of 12;", ", ".join(f"{k} {v:.1f}" for k, v in found.items()))
best = max(score, key=score.get)
(runs / "chosen").write_text(best)
print("chosen:", best)
PY
}

strict() { # the chosen one on both GPUs: commands as given, falls dear
    local run="$runs/$(cat "$runs/chosen")"
    "${both[@]}" train run.resume="$run" "${drive[@]}" "${endless[@]}" "${teacher_size[@]}" run.max_minutes=$strict
}

distil() {
    local init="$runs/$(cat "$runs/chosen")"
    "${both[@]}" train task=distill run.init="$init" run.dir="$runs/distilled" run.resume=auto "${drive[@]}" pictures=rough \
        "${distil_size[@]}" run.max_minutes=$distil run.checkpoint_minutes=1
}

finetune() { # GPU 0: encoder and memory too; GPU 1: the actor alone
    local common=(task=student run.init="$runs/distilled" run.resume=auto "${drive[@]}" pictures=rough "${endless[@]}")
    train 0 "${common[@]}" finetuning=whole run.dir="$runs/whole" "${student_size[@]}" run.max_minutes=$finetune &
    train 1 "${common[@]}" run.dir="$runs/actor" "${student_size[@]}" run.max_minutes=$finetune &
    wait -n && wait -n
}

report() { # RUN: export and the benchmark, on this run's share of the cores
    "${trainer[@]}" eval checkpoint="$runs/$1" suite=wild backend=mujoco robots=$trials cells="$cells" processes=$cores
    "${trainer[@]}" export checkpoint="$runs/$1" name="drive-$1" out="$runs/bundles/drive-$1"
}

all() {
    teachers && choose && strict && distil && finetune
    report whole & report actor &
    wait -n && wait -n
}

"$@"
