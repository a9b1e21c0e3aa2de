#!/usr/bin/env bash
# Runs a tour as it stands in a Markdown file: every ```bash block between the tour markers, as one script.
# tour.sh [FILE]: the README without FILE; FILE counts from the top of the clone.
# Needs `weighlock` on PATH. Homes and configuration are those of a fresh user; nothing of this host is touched.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tour=${1:-README.md}
named="the README's tour"
[ $# -eq 0 ] || named="the tour in $1"
command -v weighlock > /dev/null || { echo "tour: weighlock is not on PATH (cargo build --release)" >&2; exit 2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/wl-tour.XXXXXX")
finish() {
    # A tour that failed half-way leaves its daemons; they are told apart by their store.
    local socket store pid
    for socket in "$work"/tmp/*/*/run/weighlock.sock; do
        [ -S "$socket" ] || continue
        store=${socket%/run/weighlock.sock}
        pid=$(weighlock --data-dir "$store" --json status | sed 's/.*"pid":\([0-9]*\).*/\1/') || continue
        kill "$pid" 2> /dev/null || continue
        while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
    done
    chmod -R u+w "$work" 2> /dev/null || true
    rm -rf "$work"
}
trap finish EXIT

awk '
    /^<!-- tour -->$/      { tour = 1; next }
    /^<!-- end of tour -->$/ { tour = 0 }
    tour && /^```bash$/    { block = 1; blocks++; next }
    /^```$/                { block = 0 }
    block                  { print }
    END                    { if (!blocks) exit 1 }
' "$root/$tour" > "$work/tour.bash" || { echo "tour: $tour has no tour" >&2; exit 1; }

# What a fresh user has. Build tools stay where they are.
export CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}"
mkdir -p "$work/home" "$work/tmp"
: > "$work/empty.toml"
export HOME="$work/home" TMPDIR="$work/tmp" WEIGHLOCK_CONFIG="$work/empty.toml"
export XDG_CONFIG_HOME="$HOME/.config" XDG_DATA_HOME="$HOME/.local/share" XDG_CACHE_HOME="$HOME/.cache"
unset WEIGHLOCK_DATA_DIR WEIGHLOCK_SOCKET_DIR WEIGHLOCK_KEYS_DIR WEIGHLOCK_TICKET WEIGHLOCK_SOCKET MODEL
unset WEIGHLOCK_SIGNING_KEY WEIGHLOCK_ADMIN_KEY

cd "$root"
if ! bash -euo pipefail "$work/tour.bash"; then
    echo "tour: failed; the daemons said:" >&2
    tail -n 40 "$work"/tmp/*/*.log >&2 || true
    exit 1
fi
echo "tour: every command of $named did what it says"
