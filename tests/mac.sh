#!/bin/bash
# Ten checks of bytetwin on a Mac, in at most fifteen minutes: run it in a clone, plugged in, and send the file it names.
#   bash tests/mac.sh            all of them
#   bash tests/mac.sh 4 5        some of them, by number
# For the bash 3.2 of macOS. BIN, RUNS and RESULTS say where it looks and writes; PATIENCE=3 gives three times as long,
# SPEC=tiny trains something smaller than smoke in checks 7 to 10.
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 1
BIN=${BIN:-.venv/bin}
RUNS=${RUNS:-runs/mac}
chip=$(sysctl -n machdep.cpu.brand_string 2>/dev/null || uname -m)
RESULTS=${RESULTS:-mac-$(echo "$chip" | tr -c 'A-Za-z0-9\n' -).txt}
WANTED=" ${*:-1 2 3 4 5 6 7 8 9 10} "
summary=
failed=0

bytetwin() { "$BIN/bytetwin" "$@"; }
python() { PYTHONPATH=. "$BIN/python" "$@"; }
# A training run by steps: name, steps, more words. EXEC=exec train ... & makes it the process $!.
EXEC=
train() {
    name=$1 steps=$2
    shift 2
    $EXEC "$BIN/bytetwin" train "${SPEC:-smoke}" --engine mlx --runs-dir "$RUNS" --run "$name" --no-finish --set schedule.driver=steps \
        --set training.time_limit_s=0 --set "training.steps=$steps" --set training.val_every_steps=0 \
        --set training.checkpoint_every_steps=20 --set training.log_every_steps=1 "$@" 2>&1
}

# Runs a function with a limit of time in a process group of its own: number, title, seconds, function.
check() {
    case "$WANTED" in *" $1 "*) ;; *) return ;; esac
    echo
    echo "=== $1. $2 (at most $3 s)"
    local begin=$SECONDS limit=$(($3 * ${PATIENCE:-1})) result=ok status
    set -m
    ("$4") &
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

facts() {
    git rev-parse HEAD
    git status --short | head -5
    sw_vers 2>/dev/null || uname -a
    sysctl -n machdep.cpu.brand_string hw.memsize hw.perflevel0.physicalcpu 2>/dev/null
    pmset -g batt 2>/dev/null | head -1
    pmset -g 2>/dev/null | grep -i lowpowermode
    make --version | head -1
    python3 -c 'import platform, sys; print(sys.version, platform.machine())'
}

# What README.md promises: nothing but make and a Python, then a score.
smoke() {
    make smoke RUNS="$RUNS" ARGS="--run first" || return
    "$BIN/python" -m pip list 2>/dev/null | grep -iE '^(mlx|torch|numpy)'
}

device() { python -m tests.mac_checks facts; }

products() {
    python -m tests.mac_checks products 1 # an M5 takes TF32 here: 1e-4 and more
    python -m tests.mac_checks products 0
}

gradients() { python -m tests.mac_checks gradients; }

parity() {
    bytetwin parity tiny || return
    BYTETWIN_DEVICE=cpu bytetwin parity tiny
}

# Steps per second, where the time goes, and whether whole micro-batches help.
speed() {
    train whole 150 --profile 5 | tail -30 || return
    train halves 100 --set training.micro_batch_symbols=2048 | tail -4 || return
    BYTETWIN_DEVICE=cpu train cpu 10 | tail -4
    grep -A4 memory_limits "$RUNS/whole/environment.json"
}

memory() {
    sysctl vm.swapusage 2>/dev/null
    bytetwin train bytes --engine mlx --runs-dir "$RUNS" --run bytes --no-finish --set training.steps=10 2>&1 |
        tail -8 || return
    sysctl vm.swapusage 2>/dev/null
}

# A run that is killed and resumed has the loss curve of one that is not.
resume() {
    train straight 60 | tail -2 || return
    EXEC=exec train killed 60 >"$RUNS/killed.log" &
    until grep -q '"step": *25' "$RUNS/killed/metrics.jsonl" 2>/dev/null; do
        kill -0 $! 2>/dev/null || break
        sleep 0.05
    done
    kill -KILL $!
    wait $! 2>/dev/null
    train killed 60 --resume | tail -2 || return
    python -m tests.mac_checks curves "$RUNS/straight" "$RUNS/killed"
}

# Awake while it trains, gone soon after a signal while it compiles, two processes on one GPU, and tests of the engine.
signals() {
    EXEC=exec train awake 100000 >"$RUNS/awake.log" &
    # The texts are named, so it compiles now.
    until grep -q sha256 "$RUNS/awake.log" 2>/dev/null; do
        kill -0 $! 2>/dev/null || break
        sleep 0.05
    done
    kill -TERM $!
    local begin=$SECONDS
    wait $! 2>/dev/null
    echo "gone $((SECONDS - begin)) s after SIGTERM"
    tail -2 "$RUNS/awake.log"
    EXEC=exec train longer 100000 >"$RUNS/longer.log" &
    sleep 15
    pmset -g assertions 2>/dev/null | grep caffeinate
    kill -TERM $!
    wait $! 2>/dev/null
    tail -2 "$RUNS/longer.log"
    PATH="$PWD/$BIN:$PATH" mlx.launch -n 2 -- python -m mlx_train tiny --no-finish --runs-dir "$RUNS" --run two 2>&1 | tail -3
    python -m pytest -q -p no:cacheprovider tests/unit/engine/test_mlx_joints.py tests/unit/engine/test_mlx_device.py \
        tests/unit/engine/test_table_gradient.py tests/unit/engine/test_engines.py -k "not torch" | tail -15
}

mkdir -p "$RUNS"
{
    check 1 "the machine" 10 facts
    check 2 "make smoke" 300 smoke
    check 3 "the device and its limits" 20 device
    check 4 "float32 products" 20 products
    check 5 "repeatable gradients" 20 gradients
    check 6 "parity on GPU and CPU" 120 parity
    check 7 "speed" 100 speed
    check 8 "memory" 80 memory
    check 9 "kill and resume" 100 resume
    check 10 "signals, sleep, two processes, tests" 130 signals
    echo
    echo "$summary"
    exit $failed
} 2>&1 | tee "$RESULTS"
status=${PIPESTATUS[0]}
echo "Please send the file $RESULTS"
exit "$status"
