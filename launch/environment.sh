# Sourced by the other scripts: makes .venv in the repository, installs the project into it once, and activates it.
#   install_project [EXTRA]      EXTRA: "test"
install_project() {
    local what="." stamp
    [ -n "${1:-}" ] && what=".[$1]"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        { echo "error: python3 3.10 or newer is needed (found: $(python3 --version 2>&1 || echo none))" >&2; exit 2; }
    if [ ! -x .venv/bin/python ]; then
        python3 -m venv .venv || { echo "error: python3 -m venv failed; install the python3-venv package" >&2; exit 2; }
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
    stamp=".venv/installed-${1:-base}"
    if [ ! -e "$stamp" ] || [ setup.cfg -nt "$stamp" ]; then
        echo "installing into .venv (PyTorch and its libraries: several minutes and about 8 GB the first time) …"
        python -m pip install --quiet --disable-pip-version-check --editable "$what"
        touch "$stamp"
    fi
}
