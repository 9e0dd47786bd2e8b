// What the kernels share: which thread this is, 128-bit access, sums in a fixed order, the latch.
//
// T is the working type, float or double, a typedef at the top of every module; only T is computed in. Blocks are
// multiples of 32 threads. No grid is too small or too large: all kernels stride over what they compute.

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ long long thread_index() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ long long thread_count() { return (long long)gridDim.x * blockDim.x; }
__device__ __forceinline__ int lane_index() { return threadIdx.x % WARP; }
// In kernels with one warp to a row; the lanes of a warp stay together, so that they may shuffle.
__device__ __forceinline__ long long warp_index() { return thread_index() / WARP; }
__device__ __forceinline__ long long warp_count() { return thread_count() / WARP; }

// i mod n; a 64-bit remainder is slow, so 32 bits where they do.
__device__ __forceinline__ int column_of(long long i, int n)
{
    return i <= 0xffffffffll ? (int)((unsigned)i % (unsigned)n) : (int)(i % n);
}

__device__ __forceinline__ bool is_finite(T x) { return x - x == T(0); }
__device__ __forceinline__ T minus_infinity() { return log(T(0)); }

// Access to four elements at once: 128 bits at a time where the pointer allows it and all four are there.

struct alignas(16) Four { T x[4]; };

__device__ __forceinline__ bool aligned(const void* p) { return (unsigned long long)p % 16 == 0; }

// Elements i to i + 3 of p[size], i a multiple of 4; 0 past its end.
__device__ __forceinline__ Four load(const T* p, long long i, long long size)
{
    if (aligned(p) && i + 4 <= size) return *reinterpret_cast<const Four*>(p + i);
    Four v;
    for (int k = 0; k < 4; ++k) v.x[k] = i + k < size ? p[i + k] : T(0);
    return v;
}

__device__ __forceinline__ void store(T* p, long long i, long long size, const Four& v)
{
    if (aligned(p) && i + 4 <= size) {
        *reinterpret_cast<Four*>(p + i) = v;
    } else {
        for (int k = 0; k < 4; ++k)
            if (i + k < size) p[i + k] = v.x[k];
    }
}

// Sums over a warp and a block, always in the same order; every thread gets the sum.

__device__ __forceinline__ T warp_sum(T x)
{
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ T warp_max(T x)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        const T other = __shfl_xor_sync(ALL_LANES, x, step);
        x = other > x ? other : x;
    }
    return x;
}

__device__ __forceinline__ T block_sum(T x)
{
    __shared__ T sums[WARP];
    x = warp_sum(x);
    if (lane_index() == 0) sums[threadIdx.x / WARP] = x;
    __syncthreads();
    T total = T(0);
    for (int warp = 0; warp < (int)blockDim.x / WARP; ++warp) total += sums[warp];
    __syncthreads();  // the next sum may overwrite them
    return total;
}

// Adds x to a pair of a sum and what its roundings have left out, so that no number of additions makes it drift.
__device__ __forceinline__ void add_to(T* pair, T x)
{
    const T sum = pair[0] + x, of_x = sum - pair[0];
    pair[1] += (pair[0] - (sum - of_x)) + (x - of_x);
    pair[0] = sum;
}

// The cost of a row, from what each lane of its warp has summed up; returns whether it is finite. total_cost are pairs.
__device__ __forceinline__ bool write_cost(T sum, long long row, T factor, const T* weight, T* cost, T* total_cost)
{
    sum = factor * warp_sum(sum) * (weight ? weight[row] : T(1));
    if (lane_index() == 0) cost[row] = sum;
    if (lane_index() == 0 && total_cost) add_to(total_cost + 2 * row, sum);
    return is_finite(sum);
}

// Element i of the gradient, with penalty and mask; the first n_weights are weights.
__device__ __forceinline__ T gradient_at(
    const T* g, const T* p, const T* mask, long long i, long long n_weights, T decay)
{
    T gi = g[i];
    if (i < n_weights && decay != T(0)) gi += decay * p[i];
    if (i < n_weights && mask) gi *= mask[i];
    return gi;
}

// The control words, ctl, by which the host and the kernels talk:
//
//   ctl[0]  the latch: 0 while all is finite, 1 if a z, cost or delta was not, 2 if a gradient was not, 3 if a parameter
//           or state was not after its update
//   ctl[1]  the step in the epoch, set by `gather` or counted by `advance`
//   ctl[2]  the smallest index of a gradient that was not finite
//   ctl[3]  the smallest index of a parameter that, or whose state, was not
//   ctl[4]  1 once the latch is closed, which the first `gather` after a fault does: an update that closed it at once
//           behind its own first fault would leave it to chance which of its blocks still run, and with it which fault
//           is the first. So 2 and 3 alone do not close it.
//   ctl[5]  the epoch, 32 bits without a sign, set by the host
//   ctl[6]  and ctl[7] are free

__device__ __forceinline__ bool closed(const int* ctl) { return ctl[0] == 1 || ctl[4] != 0; }

// Plain stores: all threads that store here store the same.
__device__ __forceinline__ void latch_unless(bool all_finite, int* ctl)
{
    if (!all_finite && ctl[0] == 0) ctl[0] = 1;
}
