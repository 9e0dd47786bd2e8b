// The error of a softmax output layer.
//
// Computes  z + b, a = softmax(z) through the log-sum-exp, the cost of each row, delta = dC/dz.
// Reads     z (the product, rows x n), b (n; may be null), y (rows x n), scale (rows): the share of each row in C,
//           weight (rows; may be null), by which its cost is multiplied. factor is 1/n for a mean over outputs, else 1.
// Writes    z in place, a and delta (rows x n), cost (rows), ctl[0]; total_cost (rows; may be null) += cost.
// Bytes     per element 5 sizeof(T): z and y in, z, a and delta out; the passes over a row but the first find it in a
//           cache.
//
// One warp to a row, 8 rows to a block of 256 threads; each element is written and read by one lane only.

// Adds b to the z of a row; leaves exp(z - largest) in a.
__device__ __forceinline__ void exponentials(T* z, T* a, const T* b, long long start, int n, T& largest, T& total)
{
    largest = minus_infinity();
    for (int j = lane_index(); j < n; j += WARP) {
        const T v = z[start + j] + (b ? b[j] : T(0));
        z[start + j] = v;
        largest = v > largest ? v : largest;
    }
    largest = warp_max(largest);
    total = T(0);
    for (int j = lane_index(); j < n; j += WARP) total += a[start + j] = exp(z[start + j] - largest);
    total = warp_sum(total);
}

// The cost -sum_k y_k log a_k, whose delta is sum_k y_k (a_i - [i = k]); sum_k y_k is 1 for probabilities.
extern "C" __global__ void softmax_cross_entropy(
    T* z, T* a, T* delta, T* cost, const T* b, const T* y, const T* scale, const T* weight, T* total_cost,
    int rows, int n, T factor, int* ctl)
{
    bool all_finite = true;
    for (long long row = warp_index(); row < rows; row += warp_count()) {
        const long long start = row * n;
        T largest, total, sum_y = T(0), sum = T(0);
        exponentials(z, a, b, start, n, largest, total);
        for (int j = lane_index(); j < n; j += WARP) sum_y += y[start + j];
        sum_y = warp_sum(sum_y);
        const T log_total = log(total), share = factor * scale[row];
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            const T ai = a[i] / total, log_ai = z[i] - largest - log_total, yi = y[i];
            const T di = (sum_y * ai - yi) * share;
            sum += yi == T(0) ? T(0) : -yi * log_ai;  // 0 also where log a is -infinity
            a[i] = ai;
            delta[i] = di;
            all_finite = all_finite && is_finite(z[i]) && is_finite(ai) && is_finite(di);
        }
        sum = factor * warp_sum(sum) * (weight ? weight[row] : T(1));
        if (lane_index() == 0) cost[row] = sum;
        if (lane_index() == 0 && total_cost) total_cost[row] += sum;
        all_finite = all_finite && is_finite(sum);
    }
    latch_unless(all_finite, ctl);
}

// Any cost, g = dC/da: delta_i = a_i (g_i - sum_k g_k a_k).
extern "C" __global__ void softmax_cost(
    T* z, T* a, T* delta, T* cost, const T* b, const T* y, const T* scale, const T* weight, T* total_cost,
    int rows, int n, T factor, int* ctl)
{
    bool all_finite = true;
    for (long long row = warp_index(); row < rows; row += warp_count()) {
        const long long start = row * n;
        T largest, total, sum_ga = T(0), sum = T(0);
        exponentials(z, a, b, start, n, largest, total);
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            const T ai = a[i] / total, ga = cost_gradient(z[i], ai, y[i]) * ai;
            sum += cost_value(z[i], ai, y[i]);
            sum_ga += ga;
            a[i] = ai;
            delta[i] = ga;
        }
        sum_ga = warp_sum(sum_ga);
        const T share = factor * scale[row];
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            const T di = (delta[i] - a[i] * sum_ga) * share;
            delta[i] = di;
            all_finite = all_finite && is_finite(z[i]) && is_finite(a[i]) && is_finite(di);
        }
        sum = factor * warp_sum(sum) * (weight ? weight[row] : T(1));
        if (lane_index() == 0) cost[row] = sum;
        if (lane_index() == 0 && total_cost) total_cost[row] += sum;
        all_finite = all_finite && is_finite(sum);
    }
    latch_unless(all_finite, ctl);
}
