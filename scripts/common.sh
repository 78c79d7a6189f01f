# Sourced by scripts/setup and scripts/lane: messages, finding a Python, settings for uv.

say() { printf '[%s] %s\n' "$(basename -- "$0")" "$*" >&2; }
die() {
    say "ERROR: $*"
    exit 1
}

# A launcher such as pyenv's may exist for a version that is not installed. Only running it tells.
is_new_enough() { "$1" -c 'import sys, ssl; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }

# Prints the path of an installed Python. Arguments: the versions to look for, in order of preference.
# Any other new enough Python comes last. PYTHON, if set, comes first.
find_python() {
    local candidate version
    local -a candidates=()
    if [[ -n "${PYTHON:-}" ]]; then candidates+=("$PYTHON"); fi
    shopt -s nullglob
    for version in "$@"; do
        candidates+=(
            "python$version"
            "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python3
            "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}/cpython-$version"*/bin/python3
            {/usr,/usr/local,/opt/homebrew}/bin/"python$version"
            /opt/python*/bin/"python$version"
        )
    done
    candidates+=(python3 python {"$HOME",/opt}/{miniforge3,mambaforge,miniconda3,anaconda3,conda}/bin/python3)
    shopt -u nullglob
    for candidate in "${candidates[@]}"; do
        if command -v "$candidate" >/dev/null 2>&1 && is_new_enough "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

# uv does not read pip's settings. This fills the array uv_settings with those that reach a package registry.
# Argument: a Python that has pip.
read_uv_settings() {
    local python="$1"
    uv_settings=("UV_PYTHON_DOWNLOADS=never" "UV_LINK_MODE=${UV_LINK_MODE:-copy}")
    hand_over() { # uv's variable, pip's variable, pip's setting
        local value
        if [[ -n "${!1:-}" ]]; then return; fi
        value="${!2:-}"
        [[ -n "$value" ]] || value="$("$python" -m pip config get "global.$3" 2>/dev/null || true)"
        if [[ -n "$value" ]]; then uv_settings+=("$1=$value"); fi
    }
    hand_over UV_DEFAULT_INDEX PIP_INDEX_URL index-url
    hand_over UV_INSECURE_HOST PIP_TRUSTED_HOST trusted-host
    hand_over UV_HTTP_TIMEOUT PIP_DEFAULT_TIMEOUT timeout
    hand_over SSL_CERT_FILE PIP_CERT cert
}
