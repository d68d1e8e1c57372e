#!/usr/bin/env bash
# What the scripts for clusters run on each machine, so that a machine may be taken away at any time.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/worker.sh run COMMAND...        run it, and say by exit code whether it was finished
       launch/worker.sh install [HOST:/SHARE] make .venv with JAX for TPUs; mount the NFS share as /mnt/SHARE
       launch/worker.sh start COMMAND...      run it in the background, if it does not yet run
       launch/worker.sh follow                print its log until it ends
       launch/worker.sh status                print running, stopped (by the next), lost, or its exit code
       launch/worker.sh stop                  end it by SIGTERM, and wait until it has saved

Training saves and returns 0 on SIGTERM, as it does when it is done. Schedulers take 0 for done, so `run` passes SIGTERM
on and then returns 143 for 0: not finished, start it again. Log and exit code are in runs/worker/.
TEXT
}

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
folder=runs/worker

preemptible() {
  local code=0 told=""
  start "$@"
  trap 'told=yes; kill -TERM "$child" 2>/dev/null || true' TERM
  while kill -0 "$child" 2>/dev/null; do wait "$child" 2>/dev/null || true; done
  finish || code=$?
  [[ -z $told || $code -ne 0 ]] || code=143
  return "$code"
}

alive() {
  local id
  id=$(cat "$folder/id" 2>/dev/null) && grep -qs worker.sh "/proc/$id/cmdline"
}

mount_share() {
  local share=$1 place=/mnt/${1##*/}
  ! mountpoint -q "$place" || return 0
  if ! type -p mount.nfs >/dev/null; then
    # A machine that has just started may still be updating itself.
    run sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
    run sudo apt-get -o DPkg::Lock::Timeout=300 install -qq -y nfs-common
  fi
  run sudo mkdir -p "$place"
  run sudo mount -t nfs "$share" "$place"
}

verb=${1:-}
case $verb in
  -h | --help)
    usage
    exit
    ;;
  run | start) (($# > 1)) || fail "$verb wants a command (see launch/worker.sh --help)" ;;
  install | follow | status | stop) ;;
  *) fail "${verb:-nothing}: not one of its verbs (see launch/worker.sh --help)" ;;
esac
shift

case $verb in
  run) preemptible "$@" ;;

  install)
    [[ -z ${1:-} ]] || mount_share "$1"
    # The system's Python may be older than 3.11.
    uv=$HOME/.local/bin/uv
    [[ -x $uv ]] || curl -LsSf https://astral.sh/uv/install.sh | sh
    run "$uv" venv --quiet --allow-existing --python 3.12 .venv
    run "$uv" pip install --quiet --python .venv/bin/python --requirement requirements.txt "jax[tpu]"
    ;;

  start)
    ! alive || exit 0
    mkdir -p "$folder"
    rm -f "$folder/exit" "$folder/stopped"
    set -m
    (
      trap '' HUP
      code=0
      preemptible "$@" || code=$?
      [[ ! -e $folder/stopped ]] || code=stopped
      echo "$code" >"$folder/exit.part"
      mv "$folder/exit.part" "$folder/exit"
    ) </dev/null >"$folder/log" 2>&1 &
    echo $! >"$folder/id"
    ;;

  follow)
    [[ -e $folder/id ]] || fail "nothing was started here"
    run tail -n 100 -F --pid="$(cat "$folder/id")" "$folder/log"
    ;;

  status) if alive; then echo running; else cat "$folder/exit" 2>/dev/null || echo lost; fi ;;

  stop)
    alive || exit 0
    id=$(cat "$folder/id")
    touch "$folder/stopped"
    kill -TERM "$id"
    for ((waited = 0; waited < 300; waited++)); do
      alive || exit 0
      sleep 1
    done
    pkill -KILL -P "$id"
    ;;
esac
