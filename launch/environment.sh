# shellcheck shell=bash
# Sourced by the scripts beside it: goes to the repository's root, makes a virtual environment there, and runs commands
# that end when the script does. PYTHON=… chooses the interpreter, whose environment is then .venv-3.12 or the like.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
child=""
dry_run=""
rest=()
trap 'end_child' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# options VALUED FLAGS ARGUMENT…: reads --name VALUE (or --name=VALUE) of the names in VALUED, and --name of those in
# FLAGS, into variables of these names, a flag as "yes"; what follows a -- becomes $rest. --help and --dry-run are read
# for every script.
options() {
  local valued=" $1 " flags=" $2 dry-run " key
  shift 2
  while (($#)); do
    case $1 in
      --)
        rest=("${@:2}")
        return
        ;;
      -h | --help)
        usage
        exit
        ;;
    esac
    key=${1#--} key=${key%%=*}
    if [[ ! $key =~ ^[a-z-]+$ ]]; then
      fail "unknown argument $1 (see launch/${0##*/} --help)"
    elif [[ $1 == --*=* && $valued == *" $key "* ]]; then
      set -- "--$key" "${1#*=}" "${@:2}"
    fi
    if [[ $1 == "--$key" && $valued == *" $key "* ]]; then
      [[ -n ${2:-} && $2 != -- ]] || fail "--$key wants a value (see launch/${0##*/} --help)"
      printf -v "${key//-/_}" %s "$2"
      shift 2
    elif [[ $1 == "--$key" && $flags == *" $key "* ]]; then
      printf -v "${key//-/_}" yes
      shift
    else
      fail "unknown argument $1 (see launch/${0##*/} --help)"
    fi
  done
}

# quoted WORD…: prints a line that a shell reads as these words.
quoted() {
  local word line="" quote="'\\''"
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/$quote}'"
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# act COMMAND…: runs it, or with --dry-run only prints it. It gets no terminal to read, which would stop it, for it runs
# in the background.
act() {
  if [[ $dry_run ]]; then quoted "$@"; else run "$@" </dev/null; fi
}

# start COMMAND…: runs it in the background, in a process group of its own, whose id is $child.
start() {
  set -m
  "$@" &
  child=$!
  set +m
}

# finish: waits for what was started, and returns its exit code.
finish() {
  local code=0
  wait "$child" 2>/dev/null || code=$?
  child=""
  return "$code"
}

# end_child: kills what was started, and all that it started.
end_child() {
  [[ -z $child ]] || kill -KILL -- "-$child" 2>/dev/null || true
}

# run COMMAND…: start and finish, so that a signal ends both script and command at once.
run() {
  start "$@"
  finish
}

# works PYTHON: it runs, is 3.11 or newer, and can make environments. (A shim may exist for a Python that does not.)
works() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1
}

# find_python NAME…: prints the first of these commands that works, wherever on PATH it stands.
find_python() {
  local name place
  for name in "$@"; do
    while read -r place; do
      if works "$place"; then
        printf '%s\n' "$place"
        return
      fi
    done < <(type -ap "$name" || true)
  done
  return 1
}

# environment FILE…: makes the environment where it is missing, installs what these requirement files name where they
# have changed since, and sets $python.
environment() {
  local venv=.venv base file files=() changed=""
  if [[ -n ${PYTHON:-} ]]; then
    works "$PYTHON" || fail "PYTHON=$PYTHON: not a Python of 3.11 or newer with venv"
    venv=.venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  fi
  python=$PWD/$venv/bin/python
  if ! works "$python" || ! "$python" -m pip --version >/dev/null 2>&1; then
    base=$(find_python "${PYTHON:-python3.12}" python3.11 python3 python) ||
      fail "no Python of 3.11 or newer with venv on PATH; install one, or name it: PYTHON=/path/to/python3.12 $0"
    say "making $venv with $("$base" --version)"
    run "$base" -m venv --clear "$venv"
  fi
  # A copy of each requirement file tells what was installed: it is written last, so an interrupted install starts anew.
  mkdir -p "$venv/installed"
  for file in "$@"; do
    files+=(-r "$file")
    cmp -s "$file" "$venv/installed/${file//\//-}" || changed+=" $file"
  done
  if [[ -n $changed ]]; then
    say "installing$changed into $venv: about a minute"
    run "$python" -m pip install -qq --disable-pip-version-check "${files[@]}"
    for file in "$@"; do cp "$file" "$venv/installed/${file//\//-}"; done
  fi
  say "$("$python" --version), $venv"
}
