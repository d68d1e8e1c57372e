#!/usr/bin/env bash
# Training on Cloud TPU VMs, from the request for a slice to the last step, whatever is preempted in between.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh --name NAME --zone ZONE --type TYPE [OPTION]... -- TRAIN ARGUMENT...

Requests a TPU slice (a queued resource), or takes the one of that name; copies the code; installs requirements with
JAX for TPUs; runs python -m piano_jax.train TRAIN ARGUMENT... on every host, and shows the first one's log. When
the slice is preempted, it is requested again and the same command goes on from its newest checkpoint.

  launch/tpu_vm.sh --name piano --zone us-west4-a --type v5litepod-256 --spot --nfs 10.0.0.2:/piano -- \
    --config configs/pretrain.py:medium_tpu --workdir /mnt/piano/runs/medium --config.data.path=/mnt/piano/data/aria

  --name NAME          of the slice
  --zone ZONE          where it is, as us-west4-a
  --type TYPE          v5litepod-256, v5p-128, v6e-256, ...: gcloud compute tpus accelerator-types list --zone ZONE
  --slices N           so many slices of that type as one job (1)
  --project PROJECT    gcloud's own, if left out
  --version VERSION    of the TPU's software; follows from the type, if left out
  --spot               preemptible, and cheaper
  --nfs HOST:/SHARE    mount this share on every host as /mnt/SHARE; the work directory must be one that all see
  --poll SECONDS       between two looks at the state of the slice (30)
  --dry-run            print the commands, and run none

Training runs in the background of the hosts, so a lost connection does not end it. Ctrl-C does: every host saves and
stops. The slice stays, and costs, until you delete it: gcloud compute tpus queued-resources delete NAME --force
TEXT
}

name="" zone="" type="" slices=1 project="" version="" spot="" nfs="" poll=30
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
options "name zone type slices project version nfs poll" "spot" "$@"

for needed in name zone type; do
  [[ ${!needed} ]] || fail "--$needed is missing (see launch/tpu_vm.sh --help)"
done
[[ $name =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || fail "--name $name: lower-case letters, digits and dashes, at most 40"
[[ $slices =~ ^[1-9][0-9]{0,3}$ ]] || fail "--slices $slices: not a number of slices"
[[ $poll =~ ^[0-9]{1,4}$ ]] || fail "--poll $poll: not a number of seconds"
[[ -z $nfs || $nfs =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9_-]+$ ]] || fail "--nfs $nfs: not HOST:/SHARE"
((${#rest[@]})) || fail "after -- come the arguments of python -m piano_jax.train"
case $type in
  v5litepod-[1-9]*) : "${version:=v2-alpha-tpuv5-lite}" ;;
  v5p-[1-9]*) : "${version:=v2-alpha-tpuv5}" ;;
  v6e-[1-9]*) : "${version:=v2-alpha-tpuv6e}" ;;
  *) [[ $version ]] || fail "--type $type: not v5litepod-N, v5p-N or v6e-N; another wants --version as well" ;;
esac
[[ $dry_run ]] || type -p gcloud >/dev/null || fail "gcloud is not on PATH: https://cloud.google.com/sdk/docs/install"

place=("--zone=$zone")
[[ -z $project ]] || place+=("--project=$project")
slice=(gcloud compute tpus queued-resources)

request() {
  local words=("${slice[@]}" create "$name" "${place[@]}" "--accelerator-type=$type" "--runtime-version=$version")
  if ((slices > 1)); then words+=("--node-count=$slices" "--node-prefix=$name"); else words+=("--node-id=$name"); fi
  [[ -z $spot ]] || words+=(--spot)
  act "${words[@]}"
}

delete() { act "${slice[@]}" delete "$name" "${place[@]}" --force --quiet; }

# on WHICH COMMAND: runs a command of worker.sh on every host (all), or on the first (0).
on() {
  act "${slice[@]}" ssh "$name" "${place[@]}" "--node=$1" "--worker=$1" "--command=$2"
}

install() {
  local archive=piano_jax.tar.gz files=(piano_jax configs launch requirements.txt)
  act tar -czf "$scratch/$archive" --exclude=__pycache__ "${files[@]}" &&
    act "${slice[@]}" scp "$scratch/$archive" "$name:" "${place[@]}" --node=all --worker=all &&
    on all "mkdir -p piano_jax && tar -xzf $archive -C piano_jax && piano_jax/launch/worker.sh stop && $(
      quoted piano_jax/launch/worker.sh install ${nfs:+"$nfs"}
    )"
}

launch() { on all "$(quoted piano_jax/launch/worker.sh start .venv/bin/python -m piano_jax.train "${rest[@]}")"; }

follow() { on 0 "piano_jax/launch/worker.sh follow"; }

status() { on 0 "piano_jax/launch/worker.sh status"; }

describe() { act "${slice[@]}" describe "$name" "${place[@]}" "--format=value(state.state)"; }

hosts() {
  act gcloud compute tpus tpu-vm list "${place[@]}" "--filter=name ~ \"/$name(-[0-9]+)?\$\"" "--format=value(state)"
}

# look: sets $state to that of the slice, or ABSENT, or UNKNOWN where gcloud does not say.
look() {
  if state=$(describe 2>"$scratch/complaint"); then
    # A request can be ACTIVE for a while after its hosts were taken.
    if [[ $state == ACTIVE && $(hosts 2>/dev/null) =~ PREEMPTED|TERMINATED ]]; then state=SUSPENDED; fi
  elif grep -q NOT_FOUND "$scratch/complaint"; then
    state=ABSENT
  else
    state=UNKNOWN
  fi
}

# acquire: waits until the slice is there, and requests it where needed.
acquire() {
  local seen=""
  while look && [[ $state != ACTIVE ]]; do
    [[ $state == "$seen" || $state == ABSENT ]] || say "$name: $state"
    seen=$state
    case $state in
      ABSENT)
        say "$name: requesting $slices of $type"
        request || exit
        asked=yes
        ;;
      SUSPENDED) delete || true ;;
      FAILED)
        # What was granted before is requested again; what never was has an error in it.
        [[ $held || -z $asked ]] || fail "the request failed; why: $(quoted "${slice[@]}" describe "$name" "${place[@]}")"
        delete || true
        ;;
      UNKNOWN) [[ $held ]] || fail "$(tail -n 1 "$scratch/complaint")" ;;
    esac
    sleep "$poll"
  done
  held=yes
}

# stays MESSAGE: says it, and what is still to pay for.
stays() {
  say "$1; $name stays, and costs, until: $(quoted "${slice[@]}" delete "$name" "${place[@]}" --force)"
}

stop() {
  trap - INT TERM
  end_child
  child=""
  if [[ $running ]]; then
    say "stopping: every host saves"
    on all "piano_jax/launch/worker.sh stop" || true
    stays "stopped, and the same command goes on"
  fi
  exit 130
}

scratch=$(mktemp -d)
trap 'end_child; rm -rf "$scratch"' EXIT

if [[ $dry_run ]]; then
  describe
  request
  install
  launch
  follow
  status
  echo "# after a preemption, and then all of it again:"
  hosts
  delete
  exit
fi

asked="" held="" running="" refusals=0
trap stop INT TERM
while :; do
  acquire
  [[ $running ]] && found=$(status 2>/dev/null) || found=""
  if [[ $found != running ]]; then
    running=""
    say "$name: installing"
    if install && running=yes && launch; then
      refusals=0 found=running
      say "$name: training"
    else
      refusals=$((refusals + 1))
      ((refusals < 3)) || fail "$name does not take the code (as above); is its key known? ssh-add ~/.ssh/google_compute_engine"
      found=unreachable
    fi
  fi
  while [[ $found == running ]]; do # again, where only the connection was lost
    follow || true
    found=$(status 2>/dev/null) || found=unreachable
  done
  [[ $found == unreachable ]] || running=""
  case $found in
    0)
      stays "finished"
      exit
      ;;
    2)
      stays "bad input (exit code 2), as above"
      exit 2
      ;;
    stopped)
      say "stopped by another launch/tpu_vm.sh"
      exit 130
      ;;
  esac
  # One host that is taken fails all the others, some time before the slice is said to be.
  for ((looks = 0; looks < 5; looks++)); do
    sleep "$poll"
    look
    [[ $state == ACTIVE && $found =~ ^[0-9]+$ && $found != 143 ]] || break
  done
  if ((looks == 5)); then
    say "training failed with exit code $found; the ends of the logs of all hosts:"
    on all "tail -n 20 piano_jax/runs/worker/log" || true
    stays "failed"
    exit "$found"
  fi
  say "$name: training ended ($found), the slice is $state; once more"
done
