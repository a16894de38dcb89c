#!/usr/bin/env bash
# From a fresh clone to tests passed: makes .venv, installs, checks style, runs the suite.
#   bash tests/run.sh [options of pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh
install_project test
ruff check .
ruff format --check .
python -m pytest -n 2 --dist loadscope "$@"
