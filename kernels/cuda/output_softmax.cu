// The error of a softmax output layer.
//
// Computes  z + b, a = softmax(z) through the log-sum-exp, the cost of each row, delta = dC/dz.
// Reads     z (the product, rows x n), b (n; may be null), y (rows x n), scale (rows): the share of each row in C,
//           weight (rows; may be null), by which its cost is multiplied. factor is 1/n for a mean over outputs, else 1.
// Writes    z in place, a and delta (rows x n), cost (rows), ctl[0]; total_cost (rows pairs; may be null) += cost.
// Bytes     per element 5 sizeof(T): z and y in, z, a and delta out; the passes over a row but the first find it in a
//           cache.
//
// One warp to a row, 8 rows to a block of 256 threads; each element is written and read by one lane only.

// The largest z that a lane has seen of a row, its column, and the largest of its others.
struct Largest { T first, second; int column; };

// Adds b to the z of a row.
__device__ __forceinline__ Largest add_bias(T* z, const T* b, long long start, int n)
{
    Largest found = {minus_infinity(), minus_infinity(), -1};
    for (int j = lane_index(); j < n; j += WARP) {
        const T v = z[start + j] + (b ? b[j] : T(0));
        z[start + j] = v;
        if (v > found.first)
            found = {v, found.first, j};
        else if (v > found.second)
            found.second = v;
    }
    return found;
}

// Adds b to the z of a row; leaves exp(z - largest) in a. rest is their sum without the largest, 1, so that no small one
// is lost beside it: 1 - a of the largest is rest / (1 + rest). Of several that are 1, all but one are in it.
__device__ __forceinline__ void exponentials(T* z, T* a, const T* b, long long start, int n, T& largest, T& rest)
{
    largest = warp_max(add_bias(z, b, start, n).first);
    T others = T(0), ones = T(0);
    for (int j = lane_index(); j < n; j += WARP) {
        const T v = a[start + j] = exp(z[start + j] - largest);
        if (v == T(1))
            ones += T(1);
        else
            others += v;
    }
    rest = warp_sum(others) + (warp_sum(ones) - T(1));
}

// y log a, 0 where y is 0, also if log a is -infinity.
__device__ __forceinline__ T times_log(T y, T log_a) { return y == T(0) ? T(0) : y * log_a; }

// The cost -sum_k y_k log a_k, whose delta is sum_k y_k (a_i - [i = k]); sum_k y_k is 1 for probabilities.
extern "C" __global__ void softmax_cross_entropy(
    T* z, T* a, T* delta, T* cost, const T* b, const T* y, const T* scale, const T* weight, T* total_cost,
    int rows, int n, T factor, int* ctl)
{
    bool all_finite = true;
    for (long long row = warp_index(); row < rows; row += warp_count()) {
        const long long start = row * n;
        T largest, rest, sum_y = T(0), sum = T(0);
        exponentials(z, a, b, start, n, largest, rest);
        for (int j = lane_index(); j < n; j += WARP) sum_y += y[start + j];
        sum_y = warp_sum(sum_y);
        const T total = T(1) + rest, log_total = log1p(rest), share = factor * scale[row];
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            const T complement = (a[i] == T(1) ? rest : total - a[i]) / total;  // 1 - a_i
            const T ai = a[i] / total, log_ai = z[i] - largest - log_total, yi = y[i];
            const T di = ((sum_y - yi) * ai - yi * complement) * share;
            sum -= times_log(yi, log_ai);
            a[i] = ai;
            delta[i] = di;
            all_finite = all_finite && is_finite(z[i]) && is_finite(ai) && is_finite(di);
        }
        all_finite = write_cost(sum, row, factor, weight, cost, total_cost) && all_finite;
    }
    latch_unless(all_finite, ctl);
}

// The binary cross-entropy, for two outputs or more; exact also where an output is rounded to 1. Only the largest, a_m,
// can come near it, so 1 - a_m is not a difference but the share of the others: with their softmax r and
// odds = (1 - a_m) / a_m it is odds / (1 + odds), and a_i = r_i (1 - a_m). Then
// delta_i = (a_i - y_i) - a_i sum_{k != i} (a_k - y_k) / (1 - a_k), of which r_i (a_m - y_m) is the term of k = m.
extern "C" __global__ void softmax_binary_cross_entropy(
    T* z, T* a, T* delta, T* cost, const T* b, const T* y, const T* scale, const T* weight, T* total_cost,
    int rows, int n, T factor, int* ctl)
{
    bool all_finite = true;
    for (long long row = warp_index(); row < rows; row += warp_count()) {
        const long long start = row * n;
        const Largest own = add_bias(z, b, start, n);
        const T largest = warp_max(own.first), lane = T(lane_index());
        const bool has_it = lane == warp_max(own.first == largest ? lane : T(-1));  // one lane, also of equals
        const int m = has_it ? own.column : -1;
        const T top = warp_max(has_it ? own.second : own.first);  // the largest of the others
        T rest = T(0);
        for (int j = lane_index(); j < n; j += WARP)
            if (j != m) rest += delta[start + j] = exp(z[start + j] - top);
        rest = warp_sum(rest);
        const T gap = exp(top - largest), odds = gap * rest, log_total = log1p(odds);
        const T log_others = top - largest + log(rest) - log_total;  // log(1 - a_m)
        T error_m = T(0), quotients = T(0), sum = T(0);
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            const T yi = y[i];
            if (j == m) {
                a[i] = T(1) / (T(1) + odds);
                delta[i] = T(0);
                error_m = (T(1) - yi) * a[i] - yi * odds / (T(1) + odds);
                sum -= times_log(yi, -log_total) + times_log(T(1) - yi, log_others);
            } else {
                a[i] = delta[i] * gap / (T(1) + odds);
                delta[i] /= rest;  // r_i
                quotients += (a[i] - yi) / (T(1) - a[i]);
                sum -= times_log(yi, z[i] - largest - log_total) + times_log(T(1) - yi, log1p(-a[i]));
            }
        }
        error_m = warp_sum(error_m);
        quotients = warp_sum(quotients);
        const T share = factor * scale[row];
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            const T ai = a[i], error = j == m ? error_m : ai - y[i];
            const T others = j == m ? quotients : quotients - error / (T(1) - ai);
            const T di = (error - ai * others - delta[i] * error_m) * share;
            delta[i] = di;
            all_finite = all_finite && is_finite(z[i]) && is_finite(ai) && is_finite(di);
        }
        all_finite = write_cost(sum, row, factor, weight, cost, total_cost) && all_finite;
    }
    latch_unless(all_finite, ctl);
}

// Any other cost, g = dC/da: delta_i = a_i (g_i (1 - a_i) - sum_{k != i} g_k a_k). Its formulas take 1 - a, exact also
// where a is rounded to 1, as their z. The sum of the largest outputs and that of the others are kept apart, so that
// nothing is left of the term of a largest output once it is taken out.
extern "C" __global__ void softmax_cost(
    T* z, T* a, T* delta, T* cost, const T* b, const T* y, const T* scale, const T* weight, T* total_cost,
    int rows, int n, T factor, int* ctl)
{
    bool all_finite = true;
    for (long long row = warp_index(); row < rows; row += warp_count()) {
        const long long start = row * n;
        T largest, rest, sum_top = T(0), sum_others = T(0), sum = T(0);
        exponentials(z, a, b, start, n, largest, rest);
        const T total = T(1) + rest, top = T(1) / total, below_top = rest / total;
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            const T ai = a[i] / total, complement = ai == top ? below_top : T(1) - ai;
            const T ga = cost_gradient(complement, ai, y[i]) * ai;
            sum += cost_value(complement, ai, y[i]);
            (ai == top ? sum_top : sum_others) += ga;
            a[i] = ai;
            delta[i] = ga;
        }
        sum_top = warp_sum(sum_top);
        sum_others = warp_sum(sum_others);
        const T share = factor * scale[row];
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            const T ai = a[i], ga = delta[i];
            const T others = ai == top ? (sum_top - ga) + sum_others : sum_top + (sum_others - ga);
            const T di = (ga * (ai == top ? below_top : T(1) - ai) - ai * others) * share;
            delta[i] = di;
            all_finite = all_finite && is_finite(z[i]) && is_finite(a[i]) && is_finite(di);
        }
        all_finite = write_cost(sum, row, factor, weight, cost, total_cost) && all_finite;
    }
    latch_unless(all_finite, ctl);
}
