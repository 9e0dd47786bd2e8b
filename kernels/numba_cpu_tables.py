"""The tables of integers and numbers in which the backend tells the CPU epoch what varies: names of their columns."""

SMALL_PRODUCT = 512  # multiply-adds that take less time than a call of BLAS
SMALL_NETWORK = 4096  # parameters whose update takes less time in one piece than in one for each layer
# Columns of the table of layers, whose row l is layer l. W and B are offsets in the flat buffers, the others addresses.
# B is -1 without biases; MASK, Z and DERIVE are 0 where there is none; ACTIVATE is 0 for softmax.
SIZE, W, B, MASK, Z, A, H, DELTA, ACTIVATE, DERIVE, LAYER_COLUMNS = range(11)
# Entries of the table of the network.
(OUTPUT, COST, GEMM, GIVE_WAY, ZEROS, Y, SCALE, ROW_COST, MASKED, THRESHOLD, KEY0, KEY1, BATCH, RULE, BY_WEIGHT,
 NETWORK_ENTRIES) = range(16)  # fmt: skip
# Entries of the table of the data: addresses, 0 for what there is not; labels and order are int32.
EPOCH, SAMPLES, X, TARGETS, LABELS, WEIGHT, ORDER, DATA_ENTRIES = range(8)
ELEMENTWISE, SOFTMAX_CROSS_ENTROPY, SOFTMAX_BINARY_CROSS_ENTROPY, SOFTMAX = range(4)  # OUTPUT
SGD, MOMENTUM, NESTEROV, RMSPROP, ADAM, ADAMW, NONE = range(7)  # RULE; NONE: the gradients are all that is wanted
# Entries of the numbers: h0 ... h5 of the rule, then these.
L2, CLIP, KEEP, FACTOR, NUMBERS = range(6, 11)
# What a thread tells the others: of each layer the sums of the magnitudes of a and delta, and single numbers.
SUM_A, SUM_DELTA = 0, 1
COST_SHARE, PENALTY_SHARE, BAD_SHARE, LARGEST_SHARE, NORM_SHARE = range(5)
TOTAL_COST, TOTAL_WEIGHT, FAULT, RESULTS = range(4)
