// The forward pass behind a matrix product: a = sigma(z), z = a_prev W + b.
//
// Computes  v = a + b, then a = sigma(v), and if asked z = v and h = a after dropout.
// Reads     a (the product, rows x n), b (n; may be null), ctl[1] and ctl[5] where there is dropout.
// Writes    a in place; z and h where they are not null. All rows x n, row-major.
// Bytes     per element 2 sizeof(T), and sizeof(T) each for z and h. bias_softmax passes over a row three times
//           (maximum, sum, quotient); the second and third time it lies in a cache.

extern "C" __global__ void bias_sigma(
    T* a, T* h, T* z, const T* b, int rows, int n,
    unsigned threshold, T keep, unsigned key0, unsigned key1, unsigned layer, const int* ctl)
{
    const Dropout dropout = make_dropout(threshold, keep, key0, key1, layer, ctl);
    const long long size = (long long)rows * n;
    for (long long i = 4 * thread_index(); i < size; i += 4 * thread_count()) {
        Four v = load(a, i, size);
        if (b) {
            int j = column_of(i, n);
            for (int k = 0; k < 4; ++k) {
                v.x[k] += b[j];
                j = j + 1 < n ? j + 1 : 0;
            }
        }
        if (z) store(z, i, size, v);
        for (int k = 0; k < 4; ++k) v.x[k] = sigma(v.x[k]);
        store(a, i, size, v);
        if (h) store(h, i, size, after_dropout(v, i, dropout));
    }
}

// One warp to a row; each element is written and read by one lane only.
extern "C" __global__ void bias_softmax(
    T* a, T* h, T* z, const T* b, int rows, int n,
    unsigned threshold, T keep, unsigned key0, unsigned key1, unsigned layer, const int* ctl)
{
    const Dropout dropout = make_dropout(threshold, keep, key0, key1, layer, ctl);
    for (long long row = warp_index(); row < rows; row += warp_count()) {
        const long long start = row * n;
        T largest = minus_infinity();
        for (int j = lane_index(); j < n; j += WARP) {
            const T v = a[start + j] + (b ? b[j] : T(0));
            if (z) z[start + j] = v;
            a[start + j] = v;
            largest = v > largest ? v : largest;
        }
        largest = warp_max(largest);
        T total = T(0);
        for (int j = lane_index(); j < n; j += WARP) total += a[start + j] = exp(a[start + j] - largest);
        total = warp_sum(total);
        for (int j = lane_index(); j < n; j += WARP) {
            const long long i = start + j;
            a[i] = a[i] / total;
            if (h) h[i] = after_dropout(a[i], i, dropout);
        }
    }
}
