#!/usr/bin/env bash
# All that CI runs: shellcheck, ruff, pytest. Arguments go to pytest; PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<'END'
usage: launch/test.sh [PYTEST ARGUMENT]...

Makes .venv and installs what tests need, where that is not done yet; checks the shell scripts with shellcheck and the
Python code with ruff; runs pytest over everything, or as the arguments say: launch/test.sh tests/music -k tempo

PYTHON=/path/to/python chooses the interpreter; its environment is .venv-3.12 or the like.
END
  exit
fi

# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment requirements.txt tests/requirements.txt
bin=${python%/*}

say "shellcheck"
run "$bin/shellcheck" --external-sources launch/*.sh .ci/run
say "ruff"
run "$bin/ruff" check
run "$bin/ruff" format --check
say "pytest"
run "$python" -m pytest --numprocesses 2 "$@"
say "passed"
