#!/bin/bash
# Nine checks of bytetwin on one NVIDIA GPU, the most important first: the first three take at most eight minutes, all of
# them half an hour. Run it in a clone after make test-fast EXTRAS=mlx-cuda,cuda,data,dev, and send the file it names.
#   bash tests/gpu.sh            all of them
#   bash tests/gpu.sh 1 2 3      some of them, by number; checks.sh says what else may be set
# SCRIPT=train_gpt.py names the public script to race against; TEXT and HELDOUT are datasets other than the built-in one.
cd "$(dirname "$0")/.." || exit 1
. tests/checks.sh
RUNS=${RUNS:-runs/gpu}
chip=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1)
RESULTS=${RESULTS:-gpu-$(echo "${chip:-none}" | tr -c 'A-Za-z0-9\n' -).txt}

facts() {
    git rev-parse HEAD
    git status --short | head -5
    python -m pip list 2>/dev/null | grep -iE '^(mlx|torch|triton|numpy|flash-attn|fla-core)'
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
}

# Tokens per second and MFU at the size of the public baseline, memory, and how long it takes until it is ready.
race() { python -m tests.bench.gpu --only speed --rounds 4 --minutes 4.5 ${SCRIPT:+--script "$SCRIPT"}; }

# The way to a record on one GPU, then the same again, which has nothing left to do.
node() {
    local text="--set data.train=${TEXT:-builtin} --set data.heldout=${HELDOUT:-builtin}"
    local time="--set schedule.driver=time --set training.time_limit_s=25"
    local words=(VENV="$VENV" GPUS=1 SPEC="${SPEC:-h100}" RUN=node RUNS="$RUNS" RECORDS="$RUNS/records")
    # In so short a time a small text is read often, and the average of the weights still holds the first ones.
    words+=(FORCE="enough_data average")
    words+=(ARGS="$text $time ${ARGS:-}")
    make h100 "${words[@]}" 2>&1 || return
    make h100 "${words[@]}" 2>&1 | tail -3 || return
    ls -l "$RUNS/records/node"
}

# MLX's products and gradients; then NumPy, torch and MLX, the last two on the GPU, in three processes, because most of the
# time goes into compiling.
parity() {
    local spec jobs=() status=0
    python -m tests.mlx_checks products 0 && python -m tests.mlx_checks gradients || status=1
    for spec in tiny smoke h100; do
        bytetwin parity $spec >"$RUNS/parity-$spec.txt" 2>&1 &
        jobs+=($!)
    done
    for spec in "${jobs[@]}"; do wait "$spec" || status=1; done
    cat "$RUNS"/parity-*.txt
    return $status
}

# Trained, packed and scored by MLX, with as many steps as two cores make in the time of the spec.
smoke() {
    # shellcheck disable=SC2046
    bytetwin train "${SPEC:-smoke}" --engine mlx --runs-dir "$RUNS" --run smoke $(by_steps 515) 2>&1 | tail -30
}

# One run for each GPU of the node.
sweep() {
    # shellcheck disable=SC2046
    bytetwin sweep "${SPEC:-smoke}" --engine torch --seeds 2 --jobs gpus --runs-dir "$RUNS" --name two $(by_steps 60) 2>&1 |
        tail -20
}

rest() { python -m tests.bench.gpu --only exchange tiles choice context loss attention compilation scans --minutes 4.5; }

checks() {
    check 1 "the machine" 20 facts
    check 2 "speed against the public script" 280 race
    check 3 "make h100" 180 node
    check 4 "kill and resume with torch" 150 resume torch
    check 5 "parity of NumPy, torch and MLX" 300 parity
    check 6 "smoke by MLX" 240 smoke
    check 7 "kill and resume with MLX" 150 resume mlx
    check 8 "a sweep over all GPUs" 240 sweep
    check 9 "the rest of the benchmark" 280 rest
}

run_checks
