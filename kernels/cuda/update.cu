// One step of an optimizer over the flat buffers.
//
// update
// Computes  g = (gradient + decay p of weights) mask, times clip[0] if it is not null; then the rule that this file is
//           compiled with: `rule`, STATES and NUMBERS come from bpgpu/kernels/rules.py.
// Reads     p, g, the state s0 ... s3 (null where the rule has none), mask (n_weights; may be null), clip (may be null),
//           schedule (steps x NUMBERS) and inverse_weight (steps), 1 / weight of the batch, at step ctl[1].
// Writes    p and the state in place; if not null penalty[blockIdx.x], a pair, += penalty_scale, times the batch's
//           weight, sum of p^2 over the block's weights before the step.
// Bytes     per parameter 3 sizeof(T) (p and g in, p out), 2 more for each state, 1 more with a mask.
// Nothing happens once the latch is closed. An element whose g is not finite is left as it is, sets ctl[0] = 2 and
// brings ctl[2] down to its index; one that is not finite afterwards sets ctl[0] = 3 and brings ctl[3] down.

// atomicMax, for if both kinds of fault occur in one update it must not depend on chance which is kept.
__device__ __forceinline__ void report(int fault, long long i, int* ctl)
{
    atomicMax(&ctl[0], fault);
    atomicMin(&ctl[fault], i < 0x7fffffffll ? (int)i : 0x7ffffffe);
}

// Changes parameter i, whose gradient is g, by the rule; returns whether it and its state are finite.
__device__ __forceinline__ bool change(T* p, T g, T* const* states, long long i, bool is_weight, const T* n)
{
    T pi = p[i], s[4] = {T(0), T(0), T(0), T(0)};
    for (int k = 0; k < STATES; ++k) s[k] = states[k][i];
    rule(pi, g, is_weight ? T(1) : T(0), s[0], s[1], s[2], s[3], n);
    p[i] = pi;
    for (int k = 0; k < STATES; ++k) states[k][i] = s[k];
    return is_finite(pi) && is_finite(s[0]) && is_finite(s[1]) && is_finite(s[2]) && is_finite(s[3]);
}

extern "C" __global__ void update(
    T* p, const T* g, T* s0, T* s1, T* s2, T* s3, const T* mask, long long count, long long n_weights, T decay,
    const T* clip, const T* schedule, const T* inverse_weight, T penalty_scale, T* penalty, int* ctl)
{
    if (closed(ctl)) return;
    const int step = ctl[1];
    T* const states[4] = {s0, s1, s2, s3};
    T n[NUMBERS];
    for (int k = 0; k < NUMBERS; ++k) n[k] = schedule[(long long)step * NUMBERS + k];
    const T factor = clip ? clip[0] : T(1);
    T squares = T(0);
    for (long long i = thread_index(); i < count; i += thread_count()) {
        if (penalty && i < n_weights) squares += p[i] * p[i];
        const T gi = gradient_at(g, p, mask, i, n_weights, decay);
        if (!is_finite(gi)) report(2, i, ctl);
        if (is_finite(gi * factor) && !change(p, gi * factor, states, i, i < n_weights, n)) report(3, i, ctl);
    }
    if (!penalty) return;
    squares = block_sum(squares);
    const T inverse = inverse_weight[step], weight = inverse > T(0) ? T(1) / inverse : T(0);  // of the batch
    if (threadIdx.x == 0) add_to(penalty + 2 * blockIdx.x, penalty_scale * weight * squares);
}
