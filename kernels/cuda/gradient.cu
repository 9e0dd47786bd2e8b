// The bias gradients of all layers: column sums of their deltas in two launches, in a fixed order, with no atomics.
//
// Computes  first the column sums of chunks of rows, then the sums of these.
// Reads     table (layers x 4): address of delta (rows x n), address of the result (n), n, and where the layer's
//           chunks x n partial sums begin in `partial`; delta.
// Writes    partial; then the results.
// Bytes     per element of delta sizeof(T), and 2 chunks / rows of it for the partial sums.
//
// One thread to a column, 128 to a block; blockIdx.x counts the blocks of all layers, blockIdx.y the chunks.

struct Columns {
    const T* delta;
    T* out;
    long long n, offset;
    long long column;  // of this thread; n or more if there is none
};

// Finds the layer that a block belongs to; false if there are fewer blocks.
__device__ __forceinline__ bool find(const long long* table, int layers, long long block, Columns& found)
{
    for (int l = 0; l < layers; ++l, table += 4) {
        const long long n = table[2], blocks = (n + blockDim.x - 1) / blockDim.x;
        if (block < blocks) {
            found = {reinterpret_cast<const T*>(table[0]), reinterpret_cast<T*>(table[1]), n, table[3],
                     block * blockDim.x + threadIdx.x};
            return true;
        }
        block -= blocks;
    }
    return false;
}

extern "C" __global__ void column_sums_partial(const long long* table, int layers, int rows, int chunks, T* partial)
{
    Columns c;
    for (long long block = blockIdx.x; find(table, layers, block, c); block += gridDim.x) {
        for (long long chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
            const long long stop = (chunk + 1) * rows / chunks;
            T sum = T(0);
            if (c.column >= c.n) continue;
            for (long long row = chunk * rows / chunks; row < stop; ++row) sum += c.delta[row * c.n + c.column];
            partial[c.offset + chunk * c.n + c.column] = sum;
        }
    }
}

extern "C" __global__ void column_sums_final(const long long* table, int layers, int chunks, const T* partial)
{
    Columns c;
    for (long long block = blockIdx.x; find(table, layers, block, c); block += gridDim.x) {
        T sum = T(0);
        if (c.column >= c.n) continue;
        for (long long chunk = 0; chunk < chunks; ++chunk) sum += partial[c.offset + chunk * c.n + c.column];
        c.out[c.column] = sum;
    }
}
