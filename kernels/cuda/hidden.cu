// The error of a hidden layer behind the product delta_{l+1} W_{l+1}^T.
//
// Computes  delta after the layer's dropout, times sigma'(z).
// Reads     delta (the product, rows x n), a and z (rows x n; z may be null where sigma' does not read it),
//           ctl[1] and ctl[5] where there is dropout.
// Writes    delta in place, ctl[0].
// Bytes     per element 3 sizeof(T), one more with z. hidden_softmax passes over a row twice; the second time it lies
//           in a cache.

extern "C" __global__ void hidden_delta(
    T* delta, const T* a, const T* z, int rows, int n,
    unsigned threshold, T keep, unsigned key0, unsigned key1, unsigned layer, int* ctl)
{
    const Dropout dropout = make_dropout(threshold, keep, key0, key1, layer, ctl);
    const long long size = (long long)rows * n;
    bool all_finite = true;
    for (long long i = 4 * thread_index(); i < size; i += 4 * thread_count()) {
        Four d = after_dropout(load(delta, i, size), i, dropout);
        const Four ai = load(a, i, size), zi = z ? load(z, i, size) : Four{};
        for (int k = 0; k < 4; ++k) {
            d.x[k] *= sigma_prime(zi.x[k], ai.x[k]);
            all_finite = all_finite && (is_finite(d.x[k]) || i + k >= size);
        }
        store(delta, i, size, d);
    }
    latch_unless(all_finite, ctl);
}

// delta_i = a_i (d_i - sum_k d_k a_k), d the product after dropout. One warp to a row; each element is written and
// read by one lane only.
extern "C" __global__ void hidden_softmax(
    T* delta, const T* a, const T* z, int rows, int n,
    unsigned threshold, T keep, unsigned key0, unsigned key1, unsigned layer, int* ctl)
{
    const Dropout dropout = make_dropout(threshold, keep, key0, key1, layer, ctl);
    bool all_finite = true;
    for (long long row = warp_index(); row < rows; row += warp_count()) {
        const long long start = row * n;
        T sum = T(0);
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            sum += delta[i] = after_dropout(delta[i], i, dropout) * a[i];
        }
        sum = warp_sum(sum);
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            delta[i] -= a[i] * sum;
            all_finite = all_finite && is_finite(delta[i]);
        }
    }
    latch_unless(all_finite, ctl);
}
