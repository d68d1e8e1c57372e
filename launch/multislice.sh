#!/usr/bin/env bash
# Several TPU slices as one job: tpu_vm.sh with more than one of them.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/multislice.sh --slices N --name NAME --zone ZONE --type TYPE [OPTION]... -- TRAIN ARGUMENT...

Trains on N TPU slices of one type, joined over the data-center network. Everything but --slices is as for
launch/tpu_vm.sh, which has the list of options. The mesh's replica axis goes across slices:

  launch/multislice.sh --slices 2 --name piano --zone us-west4-a --type v5litepod-256 --nfs 10.0.0.2:/piano -- \
    --config configs/pretrain.py:medium_tpu --workdir /mnt/piano/runs/medium --config.data.path=/mnt/piano/data/aria \
    --config.mesh.replica=2

  --dry-run   print the commands, and run none
TEXT
}

folder=$(dirname "${BASH_SOURCE[0]}")
case ${1:-} in
  -h | --help)
    usage
    exit
    ;;
esac
slices=""
for word in "$@"; do
  [[ $word != -- ]] || break
  [[ $word != --slices && $word != --slices=* ]] || slices=yes
done
if [[ -z $slices ]]; then
  echo "error: --slices is missing (see launch/multislice.sh --help)" >&2
  exit 2
fi
exec "$folder/tpu_vm.sh" "$@"
