// One step of an optimizer over the flat buffers, and the sums that go with it.
//
// sgd, momentum, nesterov, rmsprop, adam, adamw: the rules of bpgpu/model/optimizers.py
// Computes  g = (gradient + decay p of weights) mask, times clip[0] if it is not null; then the rule, with eta, c1 and
//           c2 from the schedule's row of step ctl[1].
// Reads     p, g, the rule's state m, v (null where it has none), mask (n_weights; may be null), clip (may be null),
//           schedule (steps x 4): eta, 1/(1 - beta1^t), 1/(1 - beta2^t), 1/weight of the batch; ctl.
//           momentum, nesterov: h0 = mu, h4 = 1 - mu, state m. rmsprop: h0 = rho, h1 = epsilon, h4 = 1 - rho, state v.
//           adam, adamw: h0 = beta1, h1 = beta2, h2 = epsilon, h3 = weight decay (adamw), h4 = 1 - beta1,
//           h5 = 1 - beta2; the differences come from the host, as 1 - 0.999f is wrong in the fifth digit.
// Writes    p and the state in place; if not null penalty[blockIdx.x], a pair, += penalty_scale, times the batch's
//           weight, sum of p^2 over the block's weights before the step.
// Bytes     per parameter 3 sizeof(T) (p and g in, p out), 2 more for each state, 1 more with a mask.
// Nothing happens once the latch is closed. An element whose g is not finite is left as it is, sets ctl[0] = 2 and
// brings ctl[2] down to its index; one that is not finite afterwards sets ctl[0] = 3 and brings ctl[3] down.
//
// norm_partial, norm_final
// Computes  clip[0] = min(1, clip_norm / norm of g), 1 if g is 0, NaN (and then no rule changes anything) if it is not
//           finite. No square can overflow: all are of quotients by the largest.
// Reads     g; p and mask as above. Writes partial (2 numbers per block); then clip[0].
// Bytes     per parameter sizeof(T), 1 more with decay, 1 more with a mask.
//
// total
// Computes  out[0] = sum of cost (n) + sum of penalty (slots; null if there are none), all pairs of a sum and what its
//           roundings have left out (`add_to`). One block, so one order.

enum Rule { SGD, MOMENTUM, NESTEROV, RMSPROP, ADAM, ADAMW };

struct Numbers { T eta, c1, c2, h0, h1, h2, h3, h4, h5; };

// beta x + added, of which rest is 1 - beta: near 1, beta rounded would have lost part of that. An infinite x stays.
__device__ __forceinline__ T decayed(T x, T beta, T rest, T added)
{
    return beta > rest ? x + (is_finite(x) ? added - rest * x : added) : beta * x + added;
}

// Changes parameter i, whose gradient is g, by the rule; returns whether it and its state are finite.
template <int rule>
__device__ __forceinline__ bool change(T* p, T g, T* m, T* v, long long i, bool is_weight, const Numbers& c)
{
    if constexpr (rule == SGD) {
        p[i] += -c.eta * g;
    } else if constexpr (rule == MOMENTUM || rule == NESTEROV) {
        const T step = -c.eta * g, velocity = decayed(m[i], c.h0, c.h4, step);
        m[i] = velocity;
        p[i] += rule == NESTEROV ? step + c.h0 * velocity : velocity;
    } else if constexpr (rule == RMSPROP) {
        v[i] = decayed(v[i], c.h0, c.h4, c.h4 * g * g);
        p[i] -= c.eta * g / (sqrt(v[i]) + c.h1);
    } else {
        m[i] = decayed(m[i], c.h0, c.h4, c.h4 * g);
        v[i] = decayed(v[i], c.h1, c.h5, c.h5 * g * g);
        T direction = m[i] * c.c1 / (sqrt(v[i] * c.c2) + c.h2);
        if (rule == ADAMW && is_weight) direction += c.h3 * p[i];
        p[i] -= c.eta * direction;
    }
    constexpr bool has_m = rule != SGD && rule != RMSPROP, has_v = rule >= RMSPROP;
    return is_finite(p[i]) && (!has_m || is_finite(m[i])) && (!has_v || is_finite(v[i]));
}

// atomicMax, for if both kinds of fault occur in one update it must not depend on chance which is kept.
__device__ __forceinline__ void report(int fault, long long i, int* ctl)
{
    atomicMax(&ctl[0], fault);
    atomicMin(&ctl[fault], i < 0x7fffffffll ? (int)i : 0x7ffffffe);
}

__device__ __forceinline__ T gradient_at(
    const T* g, const T* p, const T* mask, long long i, long long n_weights, T decay)
{
    T gi = g[i];
    if (i < n_weights && decay != T(0)) gi += decay * p[i];
    if (i < n_weights && mask) gi *= mask[i];
    return gi;
}

template <int rule>
__device__ __forceinline__ void update(
    T* p, const T* g, T* m, T* v, const T* mask, long long count, long long n_weights, T decay, const T* clip,
    const T* schedule, Numbers c, T penalty_scale, T* penalty, int* ctl)
{
    if (closed(ctl)) return;
    const T* now = schedule + 4ll * ctl[1];
    c.eta = now[0];
    c.c1 = now[1];
    c.c2 = now[2];
    const T factor = clip ? clip[0] : T(1);
    T squares = T(0);
    for (long long i = thread_index(); i < count; i += thread_count()) {
        if (penalty && i < n_weights) squares += p[i] * p[i];
        const T gi = gradient_at(g, p, mask, i, n_weights, decay);
        if (!is_finite(gi)) report(2, i, ctl);
        if (is_finite(gi * factor) && !change<rule>(p, gi * factor, m, v, i, i < n_weights, c)) report(3, i, ctl);
    }
    if (!penalty) return;
    squares = block_sum(squares);
    const T weight = now[3] > T(0) ? T(1) / now[3] : T(0);  // of the batch
    if (threadIdx.x == 0) add_to(penalty + 2 * blockIdx.x, penalty_scale * weight * squares);
}

extern "C" __global__ void sgd(
    T* p, const T* g, T* m, T* v, const T* mask, long long count, long long n_weights, T decay, const T* clip,
    const T* schedule, T h0, T h1, T h2, T h3, T h4, T h5, T penalty_scale, T* penalty, int* ctl)
{
    const Numbers c = {T(0), T(0), T(0), h0, h1, h2, h3, h4, h5};
    update<SGD>(p, g, m, v, mask, count, n_weights, decay, clip, schedule, c, penalty_scale, penalty, ctl);
}

extern "C" __global__ void momentum(
    T* p, const T* g, T* m, T* v, const T* mask, long long count, long long n_weights, T decay, const T* clip,
    const T* schedule, T h0, T h1, T h2, T h3, T h4, T h5, T penalty_scale, T* penalty, int* ctl)
{
    const Numbers c = {T(0), T(0), T(0), h0, h1, h2, h3, h4, h5};
    update<MOMENTUM>(p, g, m, v, mask, count, n_weights, decay, clip, schedule, c, penalty_scale, penalty, ctl);
}

extern "C" __global__ void nesterov(
    T* p, const T* g, T* m, T* v, const T* mask, long long count, long long n_weights, T decay, const T* clip,
    const T* schedule, T h0, T h1, T h2, T h3, T h4, T h5, T penalty_scale, T* penalty, int* ctl)
{
    const Numbers c = {T(0), T(0), T(0), h0, h1, h2, h3, h4, h5};
    update<NESTEROV>(p, g, m, v, mask, count, n_weights, decay, clip, schedule, c, penalty_scale, penalty, ctl);
}

extern "C" __global__ void rmsprop(
    T* p, const T* g, T* m, T* v, const T* mask, long long count, long long n_weights, T decay, const T* clip,
    const T* schedule, T h0, T h1, T h2, T h3, T h4, T h5, T penalty_scale, T* penalty, int* ctl)
{
    const Numbers c = {T(0), T(0), T(0), h0, h1, h2, h3, h4, h5};
    update<RMSPROP>(p, g, m, v, mask, count, n_weights, decay, clip, schedule, c, penalty_scale, penalty, ctl);
}

extern "C" __global__ void adam(
    T* p, const T* g, T* m, T* v, const T* mask, long long count, long long n_weights, T decay, const T* clip,
    const T* schedule, T h0, T h1, T h2, T h3, T h4, T h5, T penalty_scale, T* penalty, int* ctl)
{
    const Numbers c = {T(0), T(0), T(0), h0, h1, h2, h3, h4, h5};
    update<ADAM>(p, g, m, v, mask, count, n_weights, decay, clip, schedule, c, penalty_scale, penalty, ctl);
}

extern "C" __global__ void adamw(
    T* p, const T* g, T* m, T* v, const T* mask, long long count, long long n_weights, T decay, const T* clip,
    const T* schedule, T h0, T h1, T h2, T h3, T h4, T h5, T penalty_scale, T* penalty, int* ctl)
{
    const Numbers c = {T(0), T(0), T(0), h0, h1, h2, h3, h4, h5};
    update<ADAMW>(p, g, m, v, mask, count, n_weights, decay, clip, schedule, c, penalty_scale, penalty, ctl);
}

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
