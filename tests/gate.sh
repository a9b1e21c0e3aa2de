#!/usr/bin/env bash
# Runs the walkthrough of the gate, tests/gate.md, as a test. Needs `weighlock` on PATH.
exec "$(dirname "${BASH_SOURCE[0]}")/tour.sh" tests/gate.md
