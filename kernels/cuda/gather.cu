// The next minibatch, from data and a permutation that are on the device; and the step that all kernels count by.
//
// gather
// Computes  x, y: the rows of X and Y that `order` names for step s; y from labels as one-hot rows where Y is null.
//           weight: their sample weights (1 where sample_weight is null); scale = weight / the weight of the batch.
// Reads     X (n_in wide), Y (n_out wide) or labels, sample_weight, order (null: as the rows stand), inverse_weight[s].
// Writes    x (rows x n_in), y (rows x n_out), scale and weight (rows); ctl[1] = step where step >= 0, else s = ctl[1].
// Bytes     per row 2 sizeof(T) (n_in + n_out + 1), or n_out once with labels; 128 bits at a time where n_in is a
//           multiple of 16 / sizeof(T) and x and X are aligned.
// Does nothing once the latch is set, but then it closes it (common.cuh).

// As many elements as 128 bits hold.
struct alignas(16) Vec { T x[16 / sizeof(T)]; };

__device__ __forceinline__ void copy(T* out, const T* in, int n, bool vectors)
{
    if (vectors) {
        constexpr int width = 16 / sizeof(T);
        for (int j = lane_index(); j < n / width; j += WARP)
            reinterpret_cast<Vec*>(out)[j] = reinterpret_cast<const Vec*>(in)[j];
    } else {
        for (int j = lane_index(); j < n; j += WARP) out[j] = in[j];
    }
}

// One warp to a row.
extern "C" __global__ void gather(
    T* x, T* y, T* scale, T* weight, const T* X, const T* Y, const int* labels, const T* sample_weight,
    const int* order, const T* inverse_weight, int rows, int n_in, int n_out, int batch_size, int step, int* ctl)
{
    if (ctl[0] != 0) {
        if (thread_index() == 0) ctl[4] = 1;
        return;
    }
    const long long s = step >= 0 ? step : ctl[1];
    if (step >= 0 && thread_index() == 0) ctl[1] = step;
    const bool vectors = n_in * sizeof(T) % 16 == 0 && aligned(x) && aligned(X);
    for (long long row = warp_index(); row < rows; row += warp_count()) {
        const long long place = s * batch_size + row, source = order ? order[place] : place;
        copy(x + row * n_in, X + source * n_in, n_in, vectors);
        if (Y) {
            copy(y + row * n_out, Y + source * n_out, n_out, false);
        } else {
            for (int k = lane_index(); k < n_out; k += WARP) y[row * n_out + k] = labels[source] == k ? T(1) : T(0);
        }
        if (lane_index() == 0) {
            const T w = sample_weight ? sample_weight[source] : T(1);
            weight[row] = w;
            scale[row] = w * inverse_weight[s];
        }
    }
}

// ctl[1] += 1 while the latch is open: the end of a step in a captured graph. One thread.
extern "C" __global__ void advance(int* ctl)
{
    if (thread_index() == 0 && ctl[0] == 0) ctl[1] += 1;
}
