"""Every tolerance the parity check and the tests use, each with the reason for its size.

All are for float32 on a CPU unless they say otherwise. Everything else is compared exactly:
initial weights, batches, schedules, quantised codes and artifact bytes.
"""

# Largest absolute difference of any logit between two implementations. A 17 M-parameter model reaches
# a few 1e-6 through different orders of summation; a wrong epsilon or rotation shows at 1e-2.
LOGITS_ABS = 1e-5

# Largest absolute difference of a symbol's nats: a logit minus the logarithm of a sum over logits, each
# of which may be off by LOGITS_ABS.
NATS_ABS = 2 * LOGITS_ABS

# Largest absolute difference of a log-probability of the float64 oracle symbol by symbol from that of the window.
# 400 random specs reach 3.3e-14.
ORACLE_STEPS_ABS = 1e-12

# Relative L2 difference of one parameter's gradient between two engines.
GRADIENT_REL = 1e-4

# The same where the terms of a gradient cancel: this many times its change when the weights are rounded otherwise
# (shared.parity.gradient_checks.rounding_of_gradients), of which three draws give no upper bound. The gradient of one
# number of a Mamba-2 layer, 3e-4 where others are 0.5, differed by 1.4e-4 to 3.0e-4 under three instruction sets, its
# own rounding being 2e-4 to 4e-4; that of one factor of an adapter of rank 1 by 1.46e-4, its own being 4.7e-5.
GRADIENT_OVER_ROUNDING = 4.0

# The same for models with sharp attention (SHARP_GAIN): 1.4e-4 was the most in 360 random specs.
GRADIENT_SHARP_REL = 3e-4
# A gradient is zero if it is no more than this of the largest one: of attention to a single key some processors leave
# rounding, 2e-11 beside 3e-4 where others leave zeros.
GRADIENT_ZERO_REL = 2.0**-23

# An input of relu this close to zero, relative to the root mean square at its position, is on no certain side
# (shared.parity.held_kinks). Engines differ from the oracle by up to 5e-6 there, over 3 seeds of two specs and 200,000
# inputs; of random inputs one in 25,000 is that close.
KINK_REL = 5e-5

# The same in training, where the weights themselves differ between two correct runs: by up to 3e-4 there in 30 steps.
# Runs whose sides are held differ by 7e-5 after ten steps, where others differ by 2e-2 from the first flip on.
KINK_TRAINING_REL = 1e-2

# Relative difference of a directional derivative: engine gradient against central differences of the
# float64 oracle with relative steps of 1e-6, whose own error is near 1e-6.
DIRECTIONAL_REL = 1e-4

# Relative L2 difference of one parameter after ten optimizer steps. Muon's orthogonalisation amplifies
# rounding in directions of tiny singular values, hence the step from 1e-4.
PARAMETERS_REL = 1e-3

# Largest absolute difference, in nats, between two 50-step loss curves.
LOSS_CURVE_ABS = 1e-3

# Relative L2 difference of bfloat16 hidden states: 8 bits of mantissa and a few dozen roundings.
BF16_HIDDEN_REL = 2e-2

# An initial query gain above this makes attention sharp: it multiplies the rounding of attention scores.
SHARP_GAIN = 2.0

# LOGITS_ABS where a function multiplies rounding, as sharp attention does: this many times the change of the oracle's
# logits when its weights are rounded (shared.parity.function_checks.rounding_of_logits). 300 random specs under two
# instruction sets gave 0.3 to 4.3 times that, 2.1 in the median.
LOGITS_OVER_ROUNDING = 10.0

# BF16_HIDDEN_REL of models with sharp attention.
# From a gain of 1.5 to one of 5 the difference grows from 1.1e-2 to 2.1e-2 in 5 layers, from 1.3e-2 to 2.9e-2 in 9
# of a loop, from 1.5e-2 to 3.0e-2 in 32 of a loop. It was measured up to 3.6e-2.
BF16_SHARP_HIDDEN_REL = 5e-2

# Change of any log-probability when only later symbols change. Zero on most machines; a BLAS may pick
# another kernel for another memory alignment.
CAUSALITY_ABS = 1e-5

# Change of the mean nats of a window, in bfloat16, when it is scored in another row. A CPU changes nothing, but a GPU
# may share out a sum differently from row to row. Such roundings cancel in the mean, which planted caches move by 0.05
# and more.
ORDER_BF16_ABS = 5e-3

# Share of the windows that something was chosen by which may occur in the scored text. Licences and boilerplate
# repeat; windows that were taken from the scored text occur there without exception.
SELECTION_OVERLAP_FRAC = 0.1

# Share of the runs of 64 symbols of a calibration text which may occur in the scored text. Training text has up to 0.06
# of its windows there on sites that post pages again; text that a model wrote has none.
CALIBRATION_OVERLAP_FRAC = 0.1

# Share of the held-out text, by documents or by bytes, that may be in documents which were trained on. Honest splits of
# OpenWebText, Wikipedia and the built-in text have no document twice, white space and case aside, and 0 to 0.17 % that
# differ in a few words alone; digital.gov, which posts pages again, has 0 to 0.48 % of those, and one split in twelve
# had 1.2 %. What `data import` splits has none. 1 % of copied documents fails for sure.
OVERLAP_DOCUMENTS_FRAC = 0.005

# Share of a document's windows that makes it a copy. One changed word costs 64 windows. Pages from one template, such
# as Wikipedia's articles on villages, share much: of 1,270 articles 15 share half, 5 share 0.8, 1 shares 0.9.
OVERLAP_NEAR_FRAC = 0.9

# Share of the held-out windows that may occur in the training text. Boilerplate and quotations make 0 to 0.1 % in
# OpenWebText and the built-in text, 1.0 to 2.9 % in Wikipedia, 1.7 to 6.3 % on digital.gov. A text that was cut into
# other documents, which hides the documents, shows here.
OVERLAP_WINDOWS_FRAC = 0.1

# |sum of probabilities - 1| of one float32 distribution over a few hundred symbols.
NORMALISATION_ABS = 1e-4

# bits per byte on uniform random bytes may fall below 8 by no more than this (docs/techniques.md 1.4).
RANDOM_BYTES_BPB = 0.01

# Rise in bits per byte that packing may cause.
PACKING_BPB = 0.01

# Difference, in nats, between a score and the log-probability it reads. Both are float32 of size up to 60,
# so one rounding is 4e-6, and the two are computed by different kernels.
SCORE_AGREEMENT_ABS = 1e-4

# Relative difference between bytes counted by symbol and bytes of the text: known honest counts differ by
# 5e-5, known wrong ones by 4e-2 and more (docs/techniques.md 1.2, 1.8).
DENOMINATOR_WARN_REL = 1e-3
DENOMINATOR_REL = 5e-3

# Distance, in nats, of a fresh model's loss from ln V: its heads are zero, or small where they are tied.
INITIAL_LOSS_ABS = 0.1

# A dequantised weight may differ from its source by half a step, and by this fraction of it more: the
# float32 division that finds the code rounds once, which matters for weights on the border of two codes.
HALF_STEP_REL = 1e-6

# Size of brotli-coded Gaussian int6 codes above their order-0 entropy, as a fraction (0.7 to 0.8 % measured).
BROTLI_OVER_ENTROPY_FRAC = 0.012

# Relative distance of the first training loss from ln V. Tied heads know that symbols repeat, which on
# indented text is worth a few percent; a loss that is summed or divided wrongly is off by a factor.
FIRST_LOSS_REL = 0.1

# One operation against its definition, relative to the largest value of the result: a few roundings of
# float32 (1e-7 each) over sums of up to some hundred terms.
OPERATION_REL = 5e-6

# A chunked scan in float32 against the recurrence in float64, and its gradients between engines, relative to the
# largest value or norm: a few hundred roundings.
SCAN_REL = 2e-5

# One operation of the float64 oracle against its definition.
ORACLE_OPERATION_REL = 1e-12

# A closed form in float64 against numerical integration over 4,001 points.
QUADRATURE_REL = 1e-8

# One operation in bfloat16 against its definition: 8 bits of mantissa, rounded two or three times.
BF16_OPERATION_REL = 2e-2

# Singular values after five Newton-Schulz iterations on a well-conditioned matrix. The coefficients are chosen
# for speed, not for convergence to 1: the published band is about 0.68 to 1.13.
ORTHOGONAL_BAND = (0.65, 1.2)

# The same after five Polar Express iterations, on any matrix whose smallest singular value is within two decades of
# its norm: they are chosen to converge to 1, with a cushion at the top. 0.86 to 1.14 measured.
POLAR_EXPRESS_BAND = (0.8, 1.2)

# Optimizer formulas in float32 against the same in float64, one step, relative L2.
UPDATE_REL = 5e-5

# exp2 and tanh from polynomials, relative: a few roundings of float32 (6e-8 each).
POLYNOMIAL_REL = 5e-7

# Bytes that gradients read by the rules of shared.ops.shape_ops against what torch saves, relative: equal for every
# verb and preset, and within 0.0016 over 150 random specs, which differ in copies that torch makes of tiny arrays.
KEPT_BYTES_REL = 3e-3

# The upper bound of MLX's memory over what a pass may take when each operation is waited for. In 160 random specs that
# was 0.49 to 1.02 times the estimate; with results allocated ahead 0.5 to 1.3 times, by what else the machine did.
MLX_AHEAD = 1.25

# Share of its earlier value that an average of the weights may keep in the first step, where it should keep nothing.
# The rounding of float32 weights up to some hundred stays below it, any decay in use lies far above.
AVERAGE_START_FRAC = 1e-3

# Largest absolute difference, in nats, between the 50-step loss curves of runs with different numbers of ranks.
# They differ in the order of summation alone; 1, 2 and 4 ranks were measured to agree to 3e-6.
RANKS_LOSS_ABS = 1e-4

# Largest absolute difference, in bits per byte, between scores that learn from the text: of two engines, or of other
# numbers of ranks. Hundreds of optimizer steps lie behind the last symbols.
ADAPTED_BPB_ABS = 2e-4

# Predicted over packed artifact bytes of models that were not fitted, minus one: six of eight are within it
# (records/2026-11-22-artifact-prediction.md).
PREDICTED_ARTIFACT_REL = 0.01

# Predicted rows of tables of n-grams that training reads, and the bytes of their codes, against those measured on
# English Wikipedia, relative: up to 10 % off.
READ_ROWS_REL = 0.15

# Predicted header bytes: the digits of checksums and block sizes are stand-ins, which moved brotli by up to
# 23 bytes over nine artifacts.
PREDICTED_HEADER_BYTES = 40

# Entropy of Gaussian codes by quadrature against a million drawn ones, in bits: 3e-4 to 6e-4 measured for rows
# of 16 to 768 at both widths.
GAUSSIAN_CODE_BITS_ABS = 2e-3

# The same where the entropy is that of a sample of 262,144 Gaussian weights, of which the clipping quantiles are the
# noisiest part: 3e-3 measured.
SAMPLED_CODE_BITS_ABS = 1e-2

# The predicted cost of stored weights against the measured one. Costs are added over tensors and scaled from another
# error of each: on smoke 0.000239 against 0.000234 bits per byte with widths, 0.000137 against 0.000136 with SDClip.
PREDICTED_COST_REL = 0.30

# Difference of a cumulative probability in float64 between two machines or engines, or between whole windows and steps,
# up to which a coded file is read back: 2e-15 to 5e-15 were measured on smoke. Each step has a chance of twice this
# times the number of slots to need an escape of some 22 bits, so a wide margin costs next to nothing.
CODING_CUMULATIVE_ABS = 2e-13

# The same where a model multiplies rounding: this many times the change when the weights are rounded otherwise.
CODING_OVER_ROUNDING = 64.0

# |sum of probabilities - 1| of one float64 distribution that is coded with.
CODING_SUM_ABS = 1e-9

# Bytes of a coded file against the bits of the score on the same text, relative, its head aside: `prove` fails beyond.
PROOF_REL = 1e-3
