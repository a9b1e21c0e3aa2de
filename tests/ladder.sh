#!/usr/bin/env bash
# Runs the walkthrough of the ladder, tests/ladder.md, as a test. Needs `weighlock` and `python3` on PATH.
exec "$(dirname "${BASH_SOURCE[0]}")/tour.sh" tests/ladder.md
