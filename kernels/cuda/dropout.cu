// Dropout by itself: of the input of a layer whose activations were computed elsewhere.
//
// Computes  out = x keep where the element is kept, 0 where it is dropped.
// Reads     x (rows x n), ctl[1], ctl[5].
// Writes    out (rows x n), which may be x.
// Bytes     per element 2 sizeof(T).

extern "C" __global__ void dropout(
    T* out, const T* x, int rows, int n,
    unsigned threshold, T keep, unsigned key0, unsigned key1, unsigned layer, const int* ctl)
{
    const Dropout dropout = make_dropout(threshold, keep, key0, key1, layer, ctl);
    const long long size = (long long)rows * n;
    for (long long i = 4 * thread_index(); i < size; i += 4 * thread_count())
        store(out, i, size, after_dropout(load(x, i, size), i, dropout));
}
