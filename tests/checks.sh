# What mac.sh and gpu.sh share; sourced by them with the numbers of the wanted checks as arguments, none for all.
# For the bash 3.2 of macOS. VENV, RUNS and RESULTS say where they look and write; PATIENCE=3 gives three times as long,
# SPEC=tiny trains something smaller than smoke, and ARGS are more words for each such training.
set -u -o pipefail
VENV=${VENV:-.venv}
WANTED=" $* "
summary=
failed=0

bytetwin() { "$VENV/bin/bytetwin" "$@"; }
python() { PYTHONPATH=. "$VENV/bin/python" "$@"; }

# The words that make a run end after so many steps: $(by_steps 60), unquoted.
by_steps() { echo "--set schedule.driver=steps --set training.time_limit_s=0 --set training.steps=$1"; }

# A training run by steps: engine, name, steps, more words. EXEC=exec train ... & makes it the process $!.
EXEC=
train() {
    local engine=$1 name=$2 steps=$3
    shift 3
    # shellcheck disable=SC2046,SC2086
    $EXEC "$VENV/bin/bytetwin" train "${SPEC:-smoke}" --engine "$engine" --runs-dir "$RUNS" --run "$name" --no-finish \
        $(by_steps "$steps") --set training.val_every_steps=0 --set training.checkpoint_every_steps=20 \
        --set training.log_every_steps=1 ${ARGS:-} "$@" 2>&1
}

# A run that is killed and resumed has the loss curve of one that is not: engine.
resume() {
    train "$1" "straight-$1" 60 | tail -2 || return
    EXEC=exec train "$1" "killed-$1" 60 >"$RUNS/killed.log" &
    until grep -q '"step": *25' "$RUNS/killed-$1/metrics.jsonl" 2>/dev/null; do
        kill -0 $! 2>/dev/null || break
        sleep 0.05
    done
    kill -KILL $!
    wait $! 2>/dev/null
    train "$1" "killed-$1" 60 --resume | tail -2 || return
    python -m tests.curves "$RUNS/straight-$1" "$RUNS/killed-$1"
}

# Runs a function with a limit of time in a process group of its own: number, title, seconds, function and
# its arguments.
check() {
    case "$WANTED" in "  " | *" $1 "*) ;; *) return ;; esac
    echo
    echo "=== $1. $2 (at most $3 s)"
    local begin=$SECONDS limit=$(($3 * ${PATIENCE:-1})) result=ok status
    set -m
    ("${@:4}") &
    local job=$!
    set +m
    while kill -0 $job 2>/dev/null && [ $((SECONDS - begin)) -lt $limit ]; do sleep 0.2; done
    if kill -0 $job 2>/dev/null; then
        result="OVER TIME"
        kill -TERM -$job 2>/dev/null
        sleep 3
        kill -KILL -$job 2>/dev/null
    fi
    wait $job 2>/dev/null
    status=$?
    [ "$result" = ok ] && [ $status -ne 0 ] && result="FAILED with status $status"
    [ "$result" = ok ] || failed=1
    summary="$summary$1. $2: $result, $((SECONDS - begin)) s
"
    echo "=== $1. $result"
}

# Runs the function `checks`, writes what it prints to RESULTS too, and ends with status 1 if one failed.
run_checks() {
    mkdir -p "$RUNS"
    {
        checks
        echo
        echo "$summary"
        exit $failed
    } 2>&1 | tee "$RESULTS"
    local status=${PIPESTATUS[0]}
    echo "Please send the file $RESULTS"
    exit "$status"
}
