#!/usr/bin/env bash
# From stage 7 to a student that drives and stops: each step one command, resumable by calling it again.
#
#   recipe.sh teacher | distil | finetune | report RUN [TRIALS] | all
#
# One GPU: all steps take 28 minutes; more GPUs share each step. Settings by environment:
#   RUNS=runs/drive   where the runs go
#   KEEP=FOLDER       after each step: its run as small files, to resume elsewhere; reports too
#   FROM=FOLDER       such files of earlier steps, where RUNS has no such run
#   GPUS=N            instead of all
#   FINETUNING=actor  or whole: encoder and memory too
#   TINY=1            everything on the processor, at sizes that learn nothing
set -euo pipefail

stages=$(cd "$(dirname "$0")" && pwd)
runs=${RUNS:-runs/drive} kept=${FROM:-}
one=(${PYTHON:-python} -m krabby_trainer)
drive=(robot=crab_hex_rs terrain=wild motion=upright commands=drive)
endless=(agent.max_iterations=1000000 run.checkpoint_minutes=1)
teacher_size=(env.num_envs=16384) distil_size=(env.num_envs=4096 agent.max_iterations=150) student_size=(env.num_envs=8192)
teacher_min=14 distil_min=6 finetune_min=5 cells='*'
if [ -n "${TINY:-}" ]; then
    GPUS=1
    tiny=(device=cpu env.terrain.levels=2 env.terrain.columns=29 run.checkpoint_minutes=0)
    teacher_size=("${tiny[@]}" env.num_envs=29 agent.num_steps_per_env=4)
    distil_size=("${tiny[@]}" env.num_envs=29 agent.max_iterations=1 agent.num_steps_per_env=12)
    student_size=("${tiny[@]}" env.num_envs=29 agent.num_steps_per_env=12)
    teacher_min=0.01 distil_min=0.01 finetune_min=0.01 cells='flat-vx0.5'
fi
gpus=${GPUS:-$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)}
if [ "$gpus" -lt 1 ]; then
    echo "recipe.sh: no NVIDIA GPU found (nvidia-smi -L); TINY=1 tries it on the processor" >&2
    exit 2
fi
trainer=("${one[@]}")
[ "$gpus" = 1 ] || trainer=(${PYTHON:-python} -m torch.distributed.run --standalone --nproc-per-node "$gpus" -m krabby_trainer)
cores=$(($(nproc) - 2 * gpus))
[ "$cores" -ge 1 ] || cores=1

begun() { ls "$runs/$1"/checkpoints/*.pt >/dev/null 2>&1; }
# of RUN: where it is, or else the small file of it.
of() { if begun "$1"; then echo "$runs/$1"; else echo "$kept/$1.pt"; fi; }
# train RUN KEY=VALUE...: continues RUN, from its small file if that is all there is, or begins it with START's keys.
train() {
    local run=$1 from=("${start[@]}")
    if begun "$run"; then
        from=(run.resume="$runs/$run")
    elif [ -n "$kept" ] && [ -f "$kept/$run.pt" ]; then
        from=(run.resume="$kept/$run.pt" run.dir="$runs/$run")
    fi
    "${trainer[@]}" train "${from[@]}" "${drive[@]}" "${@:2}"
    keep "$run"
}
keep() { # RUN: as small files, if wanted
    [ -n "${KEEP:-}" ] || return 0
    mkdir -p "$KEEP"
    "${one[@]}" weights checkpoint="$runs/$1" out="$KEEP/$1.pt" resumable=true
    cp "$runs/$1/log.jsonl" "$KEEP/$1.jsonl"
}

teacher() { # commands as given; the curriculum continues
    start=(run.resume="$stages/../stage7.pt" run.dir="$runs/teacher")
    train teacher env.command.hurry_speed=0.1 env.command.hurry_margin=0.02 env.reward.overspeed=-4 \
        "${endless[@]}" "${teacher_size[@]}" run.max_minutes=$teacher_min
}

distil() { # meanwhile the teacher is measured
    CUDA_VISIBLE_DEVICES='' report teacher 1 &
    start=(task=distill run.init="$(of teacher)" run.dir="$runs/distilled")
    train distilled pictures=rough "${distil_size[@]}" run.max_minutes=$distil_min run.checkpoint_minutes=1
    wait
}

finetune() { # meanwhile the distilled student is measured
    CUDA_VISIBLE_DEVICES='' report distilled 1 &
    start=(task=student run.init="$(of distilled)" run.dir="$runs/student")
    train student pictures=rough finetuning="${FINETUNING:-actor}" "${endless[@]}" "${student_size[@]}" run.max_minutes=$finetune_min
    wait
}

report() { # RUN [TRIALS]: the benchmark, and the bundle; on all cores that training leaves
    local at
    at=$(of "$1")
    nice "${one[@]}" eval checkpoint="$at" suite=wild backend=mujoco robots="${2:-4}" cells="$cells" processes=$cores \
        out="$runs/reports/$1"
    "${one[@]}" export checkpoint="$at" name="drive-$1" out="$runs/bundles/drive-$1"
    [ -z "${KEEP:-}" ] || { mkdir -p "$KEEP" && cp "$runs/reports/$1/report.json" "$KEEP/$1-report.json"; }
}

all() { # each step in a separate process, so that the first failure ends all
    local step
    for step in teacher distil finetune "report student"; do bash "$0" $step; done
}

trap 'jobs -p | xargs -r kill 2>/dev/null' EXIT

"$@"
