#!/usr/bin/env bash
# Training on a GKE cluster that xpk made.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/xpk.sh --cluster CLUSTER --name NAME --type TYPE --image IMAGE [OPTION]... -- TRAIN ARGUMENT...

Queues python -m piano_jax.train TRAIN ARGUMENT... as an xpk workload on every host of one or more TPU slices:

  launch/xpk.sh --cluster piano --name medium --type v5litepod-256 --image us-docker.pkg.dev/me/piano/jax \
    --storage piano -- --config configs/pretrain.py:medium_tpu --workdir /mnt/piano/runs/medium \
    --config.data.path=/mnt/piano/data/aria

  --cluster CLUSTER    made by xpk cluster create
  --name NAME          of the workload
  --type TYPE          v5litepod-256, v5p-128, v6e-256, ...
  --image IMAGE        a container image of this repository (README, "On a pod")
  --slices N           so many slices of that type as one job (1)
  --storage NAME       a file system attached by xpk storage attach; the work directory must be one that all hosts see
  --project PROJECT    gcloud's own, if left out
  --zone ZONE          gcloud's own, if left out
  --dry-run            print the command, and run nothing

A workload whose hosts were preempted starts again and goes on from its newest checkpoint, up to 50 times; one with bad
input (exit code 2) does not.
TEXT
}

cluster="" name="" type="" image="" slices=1 storage="" project="" zone=""
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
options "cluster name type image slices storage project zone" "" "$@"

for needed in cluster name type image; do
  [[ ${!needed} ]] || fail "--$needed is missing (see launch/xpk.sh --help)"
done
[[ $slices =~ ^[1-9][0-9]{0,3}$ ]] || fail "--slices $slices: not a number of slices"
((${#rest[@]})) || fail "after -- come the arguments of python -m piano_jax.train"
[[ $dry_run ]] || type -p xpk >/dev/null || fail "xpk is not on PATH: pip install xpk"

# xpk restarts on 127 to 255 by itself. 1 is what the others end with when one host is lost.
words=(xpk workload create "--cluster=$cluster" "--workload=$name" "--tpu-type=$type" "--num-slices=$slices"
  "--docker-image=$image" --max-restarts=50 --restart-on-exit-codes=1 --termination-grace-period-seconds=120)
[[ -z $storage ]] || words+=("--storage=$storage")
[[ -z $project ]] || words+=("--project=$project")
[[ -z $zone ]] || words+=("--zone=$zone")
act "${words[@]}" "--command=exec $(quoted launch/worker.sh run python -m piano_jax.train "${rest[@]}")"
