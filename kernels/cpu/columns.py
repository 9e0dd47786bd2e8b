"""The tables of integers and numbers in which the backend tells the CPU epoch what varies: names of their columns."""

SMALL_PRODUCT = 512  # multiply-adds that take less time than a call of BLAS
MANY_TERMS, FEW_SUMS = 256, 2**14  # from where on a product of more terms for at most so many sums goes in blocks
SMALL_NETWORK = 4096  # parameters whose update takes less time in one piece than in one for each layer
# Columns of the table of layers, whose row l is layer l. W and B are offsets in the flat buffers, the others addresses.
# B is -1 without biases; MASK, Z and DERIVE are 0 where there is none; ACTIVATE is 0 for softmax.
SIZE, W, B, MASK, Z, A, H, DELTA, ACTIVATE, DERIVE, LAYER_COLUMNS = range(11)
# Entries of the table of the network. SEEN and MET are addresses of an int32 for each input, if X is sparse;
# and LOST that of a number for each weight of the first layer, 0 if its sums are short. RULE is the address of the
# optimizer's step, 0 where the gradients are all that is wanted; ROW has the bytes of a row of its schedule; DESCENT is
# 1 if the step is p - eta g.
(OUTPUT, COST, GEMM, GIVE_WAY, ZEROS, Y, SCALE, ROW_COST, MASKED, THRESHOLD, KEY0, KEY1, BATCH, RULE, ROW, DESCENT,
 BY_WEIGHT, SEEN, MET, LOST, NETWORK_ENTRIES) = range(21)  # fmt: skip
# Entries of the table of the data: addresses, 0 for what there is not; integers are int32. X has the values of a sparse
# X, and INDPTR and INDICES the rest of it. SCHEDULE has a row of the optimizer's numbers for each of STEPS, the first
# of which is eta. P, G and, up to STATES_END, STATE are parameters, gradients and state, each COUNT numbers.
(EPOCH, SAMPLES, COUNT, STEPS, X, INDPTR, INDICES, TARGETS, LABELS, WEIGHT, ORDER, SCHEDULE, P, G, STATE) = range(15)
STATES_END = DATA_ENTRIES = STATE + 4
ELEMENTWISE, SOFTMAX_CROSS_ENTROPY, SOFTMAX_BINARY_CROSS_ENTROPY, SOFTMAX = range(4)  # OUTPUT
L2, CLIP, KEEP, FACTOR, LARGEST_COST, NUMBERS = range(6)  # entries of the numbers
# What a part tells: of each layer the sums of the magnitudes of a and delta, and single numbers.
SUM_A, SUM_DELTA = 0, 1
COST_SHARE, PENALTY_SHARE, BAD_SHARE, LARGEST_SHARE, NORM_SHARE, WEIGHT_SHARE = range(6)
# What all parts are told: the phase of which step it is, and what was found before.
PHASE_IS, STEP, COST_IS, DECAY, AT_ONCE, DIRECT, LARGEST_IS, CLIPPING = range(8)
FORWARD, DESCEND, LARGEST, NORM, UPDATE = range(5)  # PHASE_IS
SHARES = 8  # numbers in each row of those two: of a cache line
TOTAL_COST, TOTAL_WEIGHT, FAULT, FINITE, LOST_COST, LOST_WEIGHT, RESULTS = range(7)
