#!/usr/bin/env bash
#SBATCH --job-name=piano_jax
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --signal=TERM@120
# Training on NVIDIA GPUs under Slurm: a process a GPU, all of which see all GPUs of their node and take their own.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: sbatch [SBATCH OPTION]... launch/slurm_gpu.sh -- TRAIN ARGUMENT...
       launch/slurm_gpu.sh --dry-run -- TRAIN ARGUMENT...

Submitted from the repository's root, on a file system that all nodes share: makes .venv, installs requirements with
JAX for CUDA, and runs python -m piano_jax.train TRAIN ARGUMENT... as one process a GPU. One node of 8 GPUs, if sbatch
is not told otherwise; the two numbers must agree:

  sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --time=24:00:00 launch/slurm_gpu.sh -- \
    --config configs/pretrain.py:medium --workdir runs/medium --config.data.path=data/aria

A job that is preempted saves and is queued again; so is one that reaches its time limit, two minutes before it does.
It goes on from its newest checkpoint.

  --dry-run   print the commands, and run none

PYTHON=/path/to/python chooses the interpreter.
TEXT
}

# In a job, this file is a copy elsewhere; the job's folder is where it was submitted.
if [[ ${SLURM_JOB_ID:-} ]]; then root=${SLURM_SUBMIT_DIR:-$PWD}; else root=$(dirname "${BASH_SOURCE[0]}")/..; fi
if [[ ! -e $root/launch/environment.sh ]]; then
  echo "error: $root: not the repository's root; submit from there: sbatch launch/slurm_gpu.sh ..." >&2
  exit 2
fi
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
options "" "" "$@"
((${#rest[@]})) || fail "after -- come the arguments of python -m piano_jax.train"
[[ $dry_run || ${SLURM_JOB_ID:-} ]] || fail "not in a job; submit it: sbatch launch/slurm_gpu.sh -- ..."

python=.venv/bin/python
[[ $dry_run ]] || environment requirements.txt
act "$python" -m pip install -qq --disable-pip-version-check -r requirements.txt "jax[cuda13]"

# When one process has ended, the others may take two minutes to save, or to notice.
train=(srun --wait=120 launch/worker.sh run "$python" -m piano_jax.train "${rest[@]}")
if [[ $dry_run ]]; then
  quoted "${train[@]}"
  echo "# where the exit code is 143, which says saved but not finished:"
  quoted scontrol requeue "${SLURM_JOB_ID:-JOB}"
  exit
fi
trap : TERM # Slurm may signal this script with the processes, which it has to outlive
code=0
"${train[@]}" || code=$?
if ((code == 143)); then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
