#!/usr/bin/env bash
# A pod in small: N processes on this machine form one JAX cluster, to try and to test what many hosts do.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/local_cluster.sh N [--devices D] [--dry-run] -- COMMAND...

Starts COMMAND N times in the repository's root, as the N processes of one JAX cluster on the CPU, each with D fake
devices (8/N if left out, at least 1):

  launch/local_cluster.sh 4 -- python -m piano_jax.train --config configs/smoke.py --workdir runs/four

Each finds its place in JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; collectives are gloo's. Lines of
output begin with the process's number. SIGTERM and Ctrl-C reach every process. When one fails, the others have 10
seconds to notice; then they are killed, and the exit code is that of the first.

  --dry-run   print the commands, and start nothing
TEXT
}

devices=""
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
count=""
if [[ ${1:-} != -* ]]; then
  count=${1:-}
  shift || true
fi
options "devices" "" "$@"
[[ $count =~ ^[1-9][0-9]{0,2}$ ]] || fail "${count:-nothing}: not a number of processes (see launch/local_cluster.sh --help)"
: "${devices:=$((count < 8 ? 8 / count : 1))}"
[[ $devices =~ ^[1-9][0-9]{0,3}$ ]] || fail "--devices $devices: not a number of devices"
((${#rest[@]})) || fail "after -- comes the command to start (see launch/local_cluster.sh --help)"

port=0
until ((port)) && ! (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((20000 + RANDOM % 10000)); done

# process I: sets $words to the command of process I.
process() {
  words=(env
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port" "JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port"
    "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$1"
    "JAX_PLATFORMS=cpu" "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo"
    "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
    "PYTHONUNBUFFERED=1" "${rest[@]}")
}

if [[ $dry_run ]]; then
  for ((i = 0; i < count; i++)); do
    process "$i"
    quoted "${words[@]}"
  done
  exit
fi

ids=() readers=()
pipes=$(mktemp -d)

# tell SIGNAL [-]: sends it to each process that still runs, and with a - to all that it started.
tell() {
  local i
  for i in ${ids[@]+"${!ids[@]}"}; do kill "-$1" -- "${2:-}${ids[i]}" 2>/dev/null || true; done
}

trap 'tell KILL -; rm -rf "$pipes"' EXIT
trap 'tell TERM' TERM HUP
trap 'tell INT; trap "exit 130" INT' INT

for ((i = 0; i < count; i++)); do
  mkfifo "$pipes/$i"
  # (awk and sed may hold lines back until their input ends.)
  while IFS= read -r line || [[ $line ]]; do printf '[%d] %s\n' "$i" "$line"; done <"$pipes/$i" &
  readers+=($!)
  process "$i"
  start "${words[@]}" </dev/null >"$pipes/$i" 2>&1
  ids[i]=$child
  child=""
done

first=0 deadline=""
exec 3>&2 2>/dev/null # bash says "Killed" in words of its own
while ((${#ids[@]})); do
  sleep 0.2 || true
  worst=0
  for i in "${!ids[@]}"; do
    if kill -0 "${ids[i]}"; then continue; fi
    code=0
    wait "${ids[i]}" || code=$?
    # Of several that ended at once, those that only noticed have the lower exit code.
    if ((code > worst)); then worst=$code culprit=$i; fi
    if ((code)); then kill -KILL -- "-${ids[i]}" || true; fi # what it had started
    unset "ids[i]"
  done
  if ((worst && first == 0)); then
    first=$worst deadline=$((SECONDS + 10))
    printf 'error: process %d of %d ended with exit code %d\n' "$culprit" "$count" "$worst" >&3
  fi
  if [[ $deadline ]] && ((SECONDS >= deadline && ${#ids[@]})); then
    printf 'error: processes %s have not noticed, and are killed\n' "${!ids[*]}" >&3
    tell KILL -
    deadline=""
  fi
done
wait "${readers[@]}" || true
exit "$first"
