# shellcheck shell=sh
# What both hooks share: the settings from git config, and how the model directory is weighed. Read by them, never run.

say() { printf 'weighlock: %s\n' "$*" >&2; }

# One setting, or the default that is given.
setting() { git config --get "weighlock.$1" || printf '%s' "${2-}"; }

# Leaves with 0 where no model is configured. Then the working directory is the top of the work tree.
settings() {
    cd "$(git rev-parse --show-toplevel)" || exit 2
    # Paths mean what they say, `*` and `:` included.
    GIT_LITERAL_PATHSPECS=1
    export GIT_LITERAL_PATHSPECS
    model=$(setting model)
    if [ -z "$model" ]; then
        say "no model is configured, so nothing is weighed; \`git config weighlock.model DIR\` names one"
        exit 0
    fi
    model=${model%/}
    reports=$(git config --get-all weighlock.report)
    run=$(setting run)
    # The two exclude each other.
    [ -z "$run" ] || reports=
    policy=$(setting policy gate.toml)
    name=$(setting name)
    ran_on=$(setting ranOn)
    baseline_report=$(setting baselineReport)
    check_lock=$(git config --type=bool --get weighlock.checkLock || echo true)
    scratch=$(mktemp -d) || exit 2
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 130' INT TERM
}

# differs GIT-DIFF-ARGUMENTS...: is there a difference in what a verdict rests on?
differs() {
    set -- "$@" -- "$model" "$model.dvc" "$policy" weighlock.lock
    [ -z "$baseline_report" ] || set -- "$@" "$baseline_report"
    while IFS= read -r one; do
        [ -z "$one" ] || set -- "$@" "$one"
    done <<REPORTS
$reports
REPORTS
    any "$@"
}

# stale GIT-DIFF-ARGUMENTS...: says so where the model changes and no report does. Scores may well stay the same.
stale() {
    [ -n "$reports" ] || return 0
    any "$@" -- "$model" "$model.dvc" || return 0
    while IFS= read -r one; do
        ! any "$@" -- "$one" || return 0
    done <<REPORTS
$reports
REPORTS
    say "warning: $model changes and its report does not; is it about this model?"
}

# any GIT-DIFF-ARGUMENTS...: is there a difference? Leaves with 2 where git cannot tell.
any() {
    git diff --no-ext-diff --quiet "$@"
    case $? in
        0) return 1 ;;
        1) return 0 ;;
        *) say "git cannot tell what changed, so nothing was weighed"; exit 2 ;;
    esac
}

# What is weighed is what lies in the work tree, so that must be what is committed or pushed.
require_same() {
    what=$1
    shift
    if differs "$@"; then
        say "the work tree is not what is $what, and only the work tree can be weighed; add, stash or check out first"
        exit 2
    fi
    if [ -n "$(git ls-files --others --exclude-standard -- "$model" | head -n 1)" ]; then
        say "$model holds files that are not in git; \`git add\`, ignore or remove them"
        exit 2
    fi
}

# weigh BEFORE LOCK-CHANGED: leaves with the code of what refuses, returns where nothing does.
weigh() {
    command -v weighlock > /dev/null || {
        say "the program is not on PATH, so nothing can be weighed; install it, or use --no-verify"
        exit 127
    }
    if [ ! -e "$model" ]; then
        say "$model is configured, and is not here; fetch it, or \`git config weighlock.model DIR\` names another"
        exit 2
    fi
    if [ "$2" = yes ] && [ "$check_lock" = true ] && [ -e weighlock.lock ]; then
        weighlock lock --check --path "$model" ${name:+"$name"} < /dev/null || refuse "$?"
    fi
    # A lock that moves together with the model would compare the model with itself: what was pinned before counts.
    lock=weighlock.lock
    if git show "$1:weighlock.lock" > "$scratch/weighlock.lock" 2> /dev/null; then
        lock=$scratch/weighlock.lock
    fi
    set -- "$model" --policy "$policy" --lock-file "$lock"
    [ -z "$name" ] || set -- "$@" --name "$name"
    [ -z "$run" ] || set -- "$@" --run "$run"
    [ -z "$ran_on" ] || set -- "$@" --ran-on "$ran_on"
    [ -z "$baseline_report" ] || set -- "$@" --baseline-report "$baseline_report"
    while IFS= read -r one; do
        [ -z "$one" ] || set -- "$@" --report "$one"
    done <<REPORTS
$reports
REPORTS
    weighlock gate "$@" < /dev/null || refuse "$?"
}

# Says what to do next.
refuse() {
    case $1 in
        1)
            say "refused: the lines above say what is worse than allowed"
            say "mend the model, or let people agree on another $policy"
            ;;
        3)
            say "refused: what was measured decides nothing"
            say "evaluate $model again, with samples, and add the report (git config weighlock.report)"
            ;;
        7)
            say "refused: weighlock.lock changes, and does not pin $model as it is"
            say "pin it anew: weighlock lock NS/NAME:TAG --path $model --report REPORT"
            say "where it is to pin something else: git config weighlock.checkLock false"
            ;;
        *) say "could not weigh $model (exit code $1)" ;;
    esac
    exit "$1"
}
