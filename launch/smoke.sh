#!/usr/bin/env bash
# The whole path, small: MIDI files, token shards, pretraining on the CPU, killed and resumed, and a continuation.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/smoke.sh [--midi PATH]...

Makes .venv and installs, where that is not done yet; makes over an hour of performances, or takes the MIDI at PATH (a
file, a folder searched recursively, a .tar or .tar.gz); prepares a dataset; pretrains a small model on the CPU; kills
that with SIGKILL half-way; resumes it; continues a piece; and says where checkpoint, TensorBoard log, loss plot and
continuation lie. Under 5 minutes on 2 cores. Each call writes a new folder runs/smoke/1, runs/smoke/2, ...

PYTHON=/path/to/python chooses the interpreter.
END
}

midi=()
while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit
      ;;
    --midi | --midi=*)
      if [[ $1 == --midi=* ]]; then
        path=${1#--midi=}
      else
        path=${2:-}
        shift
      fi
      if [[ -z $path ]]; then
        echo "error: --midi wants a path (see launch/smoke.sh --help)" >&2
        exit 2
      fi
      case $path in
        /* | gs://*) ;;
        *) path=$PWD/$path ;;
      esac
      if [[ $path != gs://* && ! -e $path ]]; then
        echo "error: $path: no such file or folder" >&2
        exit 2
      fi
      midi+=(--midi "$path")
      ;;
    *)
      echo "error: unknown argument $1 (see launch/smoke.sh --help)" >&2
      exit 2
      ;;
  esac
  shift
done

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

environment requirements.txt
bin=${python%/*}

mkdir -p runs/smoke
number=1
until mkdir "runs/smoke/$number" 2>/dev/null; do
  [[ -e runs/smoke/$number ]] || fail "runs/smoke/$number: cannot be made"
  number=$((number + 1))
done
folder=runs/smoke/$number training=$folder/training

if ((${#midi[@]} == 0)); then
  say "making performances in $folder/midi"
  run "$python" -m piano_jax.music.performances --out "$folder/midi" --minutes 90
  midi=(--midi "$folder/midi" --labels "$folder/midi/manifest.csv")
fi

say "preparing a dataset in $folder/data"
run "$python" -m piano_jax.prepare "${midi[@]}" --vocabulary piano --out "$folder/data"

train=("$python" -m piano_jax.train --config configs/smoke.py --workdir "$training" "--config.data.path=$folder/data")

half=$("$python" -c 'import runpy; print(runpy.run_path("configs/smoke.py")["get_config"]().steps // 2)')

checkpoint() { # the newest whole one
  find "$training/checkpoints" -mindepth 1 -maxdepth 1 -type d ! -name '*[!0-9]*' 2>/dev/null |
    sed 's|.*/||' | sort -n | tail -n 1
}
steps() { # how many have been logged
  grep -c '"group": "train"' "$training/metrics.jsonl" 2>/dev/null || true
}

say "pretraining in $training; it will be killed half-way"
start "${train[@]}"
until [[ -n $(checkpoint) ]] && (($(steps) > half)); do
  if ! kill -0 "$child" 2>/dev/null; then
    finish
    fail "pretraining ended before it could be killed"
  fi
  sleep 0.2
done
end_child
finish || true
[[ ! -t 2 ]] || echo >&2 # the bar's line is not over
cp "$training/metrics.jsonl" "$folder/killed.jsonl"
say "killed with SIGKILL after $(steps) steps; the newest checkpoint is of step $(checkpoint). Resuming: the same command"
run "${train[@]}"

say "comparing"
run "$python" - "$folder/killed.jsonl" "$training/metrics.jsonl" <<'END'
import json
import sys

killed, whole = ([json.loads(line) for line in open(name) if line.endswith("}\n")] for name in sys.argv[1:])
before, after = ({line["step"]: line["loss"] for line in lines if line["group"] == "train"} for lines in (killed, whole))
changed = [step for step, loss in before.items() if after[step] != loss]
if changed:
    sys.exit(f"error: the loss of step {changed[0]} is {after[changed[0]]}; before it was killed, {before[changed[0]]}")
print(f"all {len(before)} steps from before it was killed have the same losses, to the bit")
validation = [line["loss"] for line in whole if line["group"] == "validation"]
print(f"the validation loss fell from {validation[0]:.3f} to {validation[-1]:.3f}")
if not validation[-1] < validation[0]:
    sys.exit("error: the validation loss did not fall")
END

say "continuing a piece"
prompt=$(find "$folder/midi" "${midi[1]}" -name '*.mid*' -type f 2>/dev/null | sort | head -n 1 || true)
if [[ -n $prompt ]]; then
  run "$python" -m piano_jax.generate --checkpoint "$training" --prompt "$prompt" --out "$folder/continued" \
    --variations 2 --tokens 512
fi

say "done"
cat <<END

checkpoint   $training/checkpoints/$(checkpoint)
TensorBoard  ${bin#"$PWD/"}/tensorboard --logdir $training
loss plot    $training/loss.png
END
[[ -z $prompt ]] || echo "continuation $folder/continued/1.mid, and 1.png to look at"
