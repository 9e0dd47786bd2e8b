// The error of an elementwise output layer.
//
// Computes  z + b, a = sigma(z), the cost of each row, delta = dC/dz.
// Reads     z (the product, rows x n), b (n; may be null), y (rows x n), scale (rows): the share of each row in C,
//           weight (rows; may be null), by which its cost is multiplied. factor is 1/n for a mean over outputs, else 1.
// Writes    z in place, a and delta (rows x n), cost (rows), ctl[0]; total_cost (rows pairs; may be null) += cost.
// Bytes     per element 5 sizeof(T): z and y in, z, a and delta out.
//
// One warp to a row, 8 rows to a block of 256 threads.

extern "C" __global__ void output_delta(
    T* z, T* a, T* delta, T* cost, const T* b, const T* y, const T* scale, const T* weight, T* total_cost,
    int rows, int n, T factor, int* ctl)
{
    bool all_finite = true;
    for (long long row = warp_index(); row < rows; row += warp_count()) {
        const T share = factor * scale[row];
        T sum = T(0);
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = row * n + j;
            const T zi = z[i] + (b ? b[j] : T(0)), ai = sigma(zi), yi = y[i];
            const T di = cost_delta(zi, ai, yi) * share;
            sum += cost_value(zi, ai, yi);
            z[i] = zi;
            a[i] = ai;
            delta[i] = di;
            all_finite = all_finite && is_finite(zi) && is_finite(ai) && is_finite(di);
        }
        all_finite = write_cost(sum, row, factor, weight, cost, total_cost) && all_finite;
    }
    latch_unless(all_finite, ctl);
}
