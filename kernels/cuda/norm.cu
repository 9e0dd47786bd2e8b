// Sums over the flat buffers and over an epoch: the norm that clips the gradient, and the cost.
//
// norm_partial, norm_final
// Computes  clip[0] = min(1, clip_norm / norm of g), 1 if g is 0, NaN (and then no rule changes anything) if it is not
//           finite. No square can overflow: all are of quotients by the largest.
// Reads     g, p, mask (n_weights; may be null). Writes partial (2 numbers per block); then clip[0].
// Bytes     per parameter sizeof(T), 1 more with decay, 1 more with a mask.
//
// total
// Computes  out[0] = sum of cost (n) + sum of penalty (slots; null if there are none), all pairs of a sum and what its
//           roundings have left out (`add_to`). One block, so one order.

// largest * sqrt(squares) is the Euclidean norm of some numbers, largest the largest of their magnitudes.
struct Norm { T largest, squares; };

__device__ __forceinline__ Norm combine(const Norm& a, const Norm& b)
{
    const T largest = a.largest >= b.largest || !is_finite(a.largest) ? a.largest : b.largest;  // NaN stays
    if (largest == T(0)) return {T(0), T(0)};
    const T ra = a.largest / largest, rb = b.largest / largest;
    return {largest, a.squares * ra * ra + b.squares * rb * rb};
}

// The norm of what the threads of a block have; thread 0 gets it.
__device__ __forceinline__ Norm block_norm(Norm norm)
{
    __shared__ Norm norms[WARP];
    for (int step = WARP / 2; step > 0; step /= 2) {
        const Norm other = {__shfl_down_sync(ALL_LANES, norm.largest, step),
                            __shfl_down_sync(ALL_LANES, norm.squares, step)};
        norm = combine(norm, other);
    }
    if (lane_index() == 0) norms[threadIdx.x / WARP] = norm;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int warp = 1; warp < (int)blockDim.x / WARP; ++warp) norm = combine(norm, norms[warp]);
    return norm;
}

extern "C" __global__ void norm_partial(
    const T* g, const T* p, const T* mask, long long count, long long n_weights, T decay, T* partial)
{
    Norm norm = {T(0), T(0)};
    for (long long i = thread_index(); i < count; i += thread_count())
        norm = combine(norm, {fabs(gradient_at(g, p, mask, i, n_weights, decay)), T(1)});
    norm = block_norm(norm);
    if (threadIdx.x == 0) {
        partial[2 * blockIdx.x] = norm.largest;
        partial[2 * blockIdx.x + 1] = norm.squares;
    }
}

extern "C" __global__ void norm_final(const T* partial, int blocks, T clip_norm, T* clip)
{
    Norm norm = {T(0), T(0)};
    for (int block = threadIdx.x; block < blocks; block += blockDim.x)
        norm = combine(norm, {partial[2 * block], partial[2 * block + 1]});
    norm = block_norm(norm);
    if (threadIdx.x == 0) {
        const T ratio = clip_norm / norm.largest / sqrt(norm.squares);
        clip[0] = norm.largest == T(0) || ratio > T(1) ? T(1) : ratio;
    }
}

extern "C" __global__ void total(const T* cost, long long n, const T* penalty, int slots, T* out)
{
    T sum[2] = {T(0), T(0)};
    for (long long i = threadIdx.x; i < 2 * n; i += blockDim.x) add_to(sum, cost[i]);
    if (penalty)
        for (int i = threadIdx.x; i < 2 * slots; i += blockDim.x) add_to(sum, penalty[i]);
    const T whole = block_sum(sum[0]), rest = block_sum(sum[1]);
    if (threadIdx.x == 0) out[0] = whole + rest;
}
