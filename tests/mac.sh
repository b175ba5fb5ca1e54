#!/bin/bash
# Ten checks of bytetwin on a Mac, in at most fifteen minutes: run it in a clone, plugged in, and send the file it names.
#   bash tests/mac.sh            all of them
#   bash tests/mac.sh 4 5        some of them, by number; checks.sh says what else may be set
cd "$(dirname "$0")/.." || exit 1
. tests/checks.sh
RUNS=${RUNS:-runs/mac}
chip=$(sysctl -n machdep.cpu.brand_string 2>/dev/null || uname -m)
RESULTS=${RESULTS:-mac-$(echo "$chip" | tr -c 'A-Za-z0-9\n' -).txt}

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
    make smoke VENV="$VENV" RUNS="$RUNS" ARGS="--run first" || return
    python -m pip list 2>/dev/null | grep -iE '^(mlx|torch|numpy)'
}

device() { python -m tests.mlx_checks facts; }

products() {
    python -m tests.mlx_checks products 1 # an M5 takes TF32 here: 1e-4 and more
    python -m tests.mlx_checks products 0
}

gradients() { python -m tests.mlx_checks gradients; }

parity() {
    bytetwin parity tiny || return
    BYTETWIN_DEVICE=cpu bytetwin parity tiny
}

# Steps per second, where the time goes, and whether whole micro-batches help.
speed() {
    train mlx whole 150 --profile 5 | tail -30 || return
    train mlx halves 100 --set training.micro_batch_symbols=2048 | tail -4 || return
    BYTETWIN_DEVICE=cpu train mlx cpu 10 | tail -4
    grep -A4 memory_limits "$RUNS/whole/environment.json"
}

memory() {
    sysctl vm.swapusage 2>/dev/null
    bytetwin train bytes --engine mlx --runs-dir "$RUNS" --run bytes --no-finish --set training.steps=10 2>&1 |
        tail -8 || return
    sysctl vm.swapusage 2>/dev/null
}

# Awake while it trains, gone soon after a signal while it compiles, two processes on one GPU, and tests of the engine.
signals() {
    EXEC=exec train mlx awake 100000 >"$RUNS/awake.log" &
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
    EXEC=exec train mlx longer 100000 >"$RUNS/longer.log" &
    sleep 15
    pmset -g assertions 2>/dev/null | grep caffeinate
    kill -TERM $!
    wait $! 2>/dev/null
    tail -2 "$RUNS/longer.log"
    PATH="$(cd "$VENV" && pwd)/bin:$PATH" mlx.launch -n 2 -- python -m mlx_train tiny --no-finish --runs-dir "$RUNS" \
        --run two 2>&1 | tail -3
    python -m pytest -q -p no:cacheprovider tests/unit/engine/test_mlx_joints.py tests/unit/engine/test_mlx_device.py \
        tests/unit/engine/test_table_gradient.py tests/unit/engine/test_engines.py -k "not torch" | tail -15
}

checks() {
    check 1 "the machine" 10 facts
    check 2 "make smoke" 300 smoke
    check 3 "the device and its limits" 20 device
    check 4 "float32 products" 20 products
    check 5 "repeatable gradients" 20 gradients
    check 6 "parity on GPU and CPU" 120 parity
    check 7 "speed" 100 speed
    check 8 "memory" 80 memory
    check 9 "kill and resume" 100 resume mlx
    check 10 "signals, sleep, two processes, tests" 130 signals
}

run_checks
