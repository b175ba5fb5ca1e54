"""Every tolerance the parity check and the tests use, each with the reason for its size.

All are for float32 on a CPU unless they say otherwise. What is not listed here is compared exactly:
initial weights, batches, schedules, quantised codes and artifact bytes.
"""

# Largest absolute difference of any logit between two implementations. A 17 M-parameter model reaches
# a few 1e-6 through different orders of summation; a wrong epsilon or rotation shows at 1e-2.
LOGITS_ABS = 1e-5

# Relative L2 difference of one parameter's gradient between two engines.
GRADIENT_REL = 1e-4

# Relative difference of a directional derivative: engine gradient against central differences of the
# float64 oracle, whose own error with steps of 1e-4 is near 1e-7.
DIRECTIONAL_REL = 1e-4

# Relative L2 difference of one parameter after ten optimizer steps. Muon's orthogonalisation amplifies
# rounding in directions of tiny singular values, hence the step from 1e-4.
PARAMETERS_REL = 1e-3

# Largest absolute difference, in nats, between two 50-step loss curves.
LOSS_CURVE_ABS = 1e-3

# Relative L2 difference of bfloat16 hidden states: 8 bits of mantissa and a few dozen roundings.
BF16_HIDDEN_REL = 2e-2

# Change of any log-probability when only later symbols change. Zero on most machines; a BLAS may pick
# another kernel for another memory alignment.
CAUSALITY_ABS = 1e-5

# |sum of probabilities - 1| of one float32 distribution over a few hundred symbols.
NORMALISATION_ABS = 1e-4

# bits per byte on uniform random bytes may fall below 8 by no more than this (FEATURES 1.3, test 6).
RANDOM_BYTES_BPB = 0.01

# Rise in bits per byte that packing may cause.
PACKING_BPB = 0.01
