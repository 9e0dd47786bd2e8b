// The three matrix products of backpropagation, each with all that follows it done before the result leaves the
// registers. Row-major throughout; B rows in the batch, m inputs, n outputs of the layer.
//
//   kernel         result                  multiplies          reads               then reads   writes
//   gemm_forward   sigma(a_prev W + b)     (B x m) (m x n)     a_prev, W           b            a; z and h if given
//   gemm_hidden    (delta W^T) * sigma'    (B x n) (n x m)     delta, W            a; z if used out
//   gemm_gradient  a_prev^T delta + ...    (m x B) (B x n)     a_prev, delta       W, mask      dW; db if given
//
// FLOPs: 2 B m n each. Bytes: at the least sizeof(T) for each element of the matrices in the table. A block computes a
// tile of 64 x 64 from 64 rows of one operand and 64 columns of the other, so the left operand is read once for every
// 64 columns of the result and the right one once for every 64 rows, mostly from L2: 16 FLOPs a byte in float, 8 in
// double. From shared memory a thread takes 8 elements for 16 multiplications and additions.
//
// Deterministic on any grid: every element is summed over k = 0, 1, 2, ... by one thread, in blocks, whose sums are added
// in order; an element of db is 16 such sums, of every 16th row each, added in order. Launched with blocks of 256 threads in x, and a grid of
// (ceil(columns / 64), ceil(rows / 64)) of the result; a smaller one strides. B, m and n are below 2^31 - 64.

constexpr int TILE = 64;            // rows and columns of the result in a block's tile
constexpr int DEPTH = 16;           // terms of the sum that are in shared memory at a time
constexpr int SIDE = TILE / 4;      // threads along a side of the tile, with 4 x 4 elements each
constexpr int THREADS = SIDE * SIDE;
static_assert(DEPTH * TILE == 4 * THREADS, "each thread brings four elements of each slab");

// A slab: DEPTH terms of the sum for the 64 rows (or columns) of a tile. Shared memory hands out 128 bits a thread and
// 128 bytes at a time, which is 4 floats but only 2 doubles, so four neighbouring doubles lie in two parts. Threads
// that work together read neighbouring Vecs of one part and no two meet in a bank; the padding keeps the two parts
// from meeting when single elements are stored (16 doubles of a half warp: part 1 must begin 8 banks of 64 bits on).

constexpr int LANES = 16 / sizeof(T);
constexpr int PARTS = 4 / LANES;
constexpr int PADDING = PARTS == 1 ? 0 : 4;
struct alignas(16) Vec { T x[LANES]; };

struct Slab {
    Vec part[DEPTH][PARTS][SIDE + PADDING];

    __device__ __forceinline__ T& element(int k, int i) { return part[k][i % 4 / LANES][i / 4].x[i % LANES]; }

    // Elements 4 i to 4 i + 3 of term k.
    __device__ __forceinline__ Four read(int k, int i) const
    {
        Four v;
        for (int p = 0; p < PARTS; ++p) {
            const Vec some = part[k][p][i];
            for (int l = 0; l < LANES; ++l) v.x[p * LANES + l] = some.x[l];
        }
        return v;
    }

    __device__ __forceinline__ void write(int k, int i, const Four& v)
    {
        for (int p = 0; p < PARTS; ++p) {
            Vec some;
            for (int l = 0; l < LANES; ++l) some.x[l] = v.x[p * LANES + l];
            part[k][p][i] = some;
        }
    }
};

// An operand: a matrix as it lies in memory, of which term k of the sum for row (or column) i of the result is
// data[i][k] if SUM_IN_ROWS, data[k][i] if not. Its slabs are the same either way, so the product need not know.
template <bool SUM_IN_ROWS>
struct Operand {
    const T* data;
    int rows, columns;

    __device__ __forceinline__ int extent() const { return SUM_IN_ROWS ? rows : columns; }
    __device__ __forceinline__ int terms() const { return SUM_IN_ROWS ? columns : rows; }

    // The four neighbours in memory that this thread brings of the slab that begins at (i, k); 0 outside of the
    // matrix. `load` takes 128 bits at a time where the row is aligned, which all rows are, or one in two or four.
    __device__ __forceinline__ Four fetch(int i, int k) const
    {
        const int thread = threadIdx.x;
        const int row = SUM_IN_ROWS ? i + thread % TILE : k + thread / SIDE;
        const int column = SUM_IN_ROWS ? k + thread / TILE * 4 : i + thread % SIDE * 4;
        if (row >= rows) return Four{};
        return load(data + (long long)row * columns, column, columns);
    }

    // What `fetch` brought, into the slab: four terms of one row of the result, or one term of four columns.
    __device__ __forceinline__ static void place(const Four& v, Slab& slab)
    {
        const int thread = threadIdx.x;
        if (SUM_IN_ROWS) {
            for (int k = 0; k < 4; ++k) slab.element(thread / TILE * 4 + k, thread % TILE) = v.x[k];
        } else {
            slab.write(thread / SIDE, thread % SIDE, v);
        }
    }
};

// How many of so many terms are added up before their sum is added to the sum of the others: about the square root, for
// a sum of n terms that are alike may be off by n / 6 roundings. A multiple of DEPTH.
__device__ __forceinline__ int block_of(int terms)
{
    const int block = (int)sqrt(T(terms)) / DEPTH * DEPTH;
    return block > 4 * DEPTH ? block : 4 * DEPTH;
}

__device__ __forceinline__ void add_block(Four& total, Four& sum)
{
    for (int k = 0; k < 4; ++k) total.x[k] += sum.x[k];
    sum = {};
}

// The product of two operands, handed on four columns of a row at a time: epilogue(row, column, v). If `column_sums`
// is given, also the sums of b over the terms, for which b must not be SUM_IN_ROWS.
template <class A, class B, class Epilogue>
__device__ __forceinline__ void multiply(const A& a, const B& b, T* column_sums, const Epilogue& epilogue)
{
    __shared__ Slab a_slab[2], b_slab[2];
    const int rows = a.extent(), columns = b.extent(), terms = a.terms();
    const int thread = threadIdx.x, down = thread / SIDE, across = thread % SIDE, block = block_of(terms);
    for (unsigned y = blockIdx.y; y < ((unsigned)rows + TILE - 1) / TILE; y += gridDim.y) {
        for (unsigned x = blockIdx.x; x < ((unsigned)columns + TILE - 1) / TILE; x += gridDim.x) {
            const int row0 = y * TILE, column0 = x * TILE;
            const bool summing = column_sums && y == 0;
            Four sum[4] = {}, b_sum = {}, total[4] = {}, b_total = {};
            int end = block;  // of the terms that are added up in `sum`
            Four next_a = a.fetch(row0, 0), next_b = b.fetch(column0, 0);
            __syncthreads();  // the tile before this one may still be in use
            for (int k0 = 0, stage = 0; k0 < terms; k0 += DEPTH, stage ^= 1) {
                A::place(next_a, a_slab[stage]);
                B::place(next_b, b_slab[stage]);
                if (summing)
                    for (int j = 0; j < 4; ++j) b_sum.x[j] += next_b.x[j];
                // One barrier a slab is enough: behind it a thread writes to the other pair of slabs, and before it
                // every thread had done with that pair.
                __syncthreads();
                // Asked for now, needed after the multiplications, which hide the wait for global memory.
                next_a = a.fetch(row0, k0 + DEPTH);
                next_b = b.fetch(column0, k0 + DEPTH);
#pragma unroll
                for (int k = 0; k < DEPTH; ++k) {
                    const Four left = a_slab[stage].read(k, down), right = b_slab[stage].read(k, across);
                    for (int i = 0; i < 4; ++i)
                        for (int j = 0; j < 4; ++j) sum[i].x[j] += left.x[i] * right.x[j];
                }
                if (k0 + DEPTH == end || k0 + DEPTH >= terms) {
                    for (int i = 0; i < 4; ++i) add_block(total[i], sum[i]);
                    add_block(b_total, b_sum);
                    end += block;
                }
            }
            const int column = column0 + 4 * across;
#pragma unroll 1  // four copies of a long formula would only be slower to compile and to fetch
            for (int row = row0 + 4 * down, end = row + 4; row < end; ++row) {
                if (row < rows && column < columns) epilogue(row, column, total[0]);
                for (int i = 0; i < 3; ++i) total[i] = total[i + 1];  // moved, as registers have no index
            }
            if (summing) {  // each thread has the sum of every 16th row, for four columns
                __syncthreads();
                b_slab[0].write(down, across, b_total);
                __syncthreads();
                if (thread < TILE && column0 + thread < columns) {
                    T total = T(0);
                    for (int k = 0; k < DEPTH; ++k) total += b_slab[0].element(k, thread);
                    column_sums[column0 + thread] = total;
                }
            }
        }
    }
}

// Elements i to i + 3 after dropout. Where n is a multiple of four, they share one block of random words.
__device__ __forceinline__ Four drop(Four v, long long i, int n, const Dropout& dropout)
{
    if (n % 4 == 0) return after_dropout(v, i, dropout);
    for (int k = 0; k < 4; ++k) v.x[k] = after_dropout(v.x[k], i + k, dropout);
    return v;
}

struct Forward {
    const T* b;
    T *a, *h, *z;
    int n;
    Dropout dropout;

    __device__ __forceinline__ void operator()(int row, int column, Four v) const
    {
        const long long start = (long long)row * n;
        if (b) {
            const Four bias = load(b, column, n);
            for (int k = 0; k < 4; ++k) v.x[k] += bias.x[k];
        }
        if (z) store(z + start, column, n, v);
        for (int k = 0; k < 4; ++k) v.x[k] = sigma(v.x[k]);
        store(a + start, column, n, v);
        if (h) store(h + start, column, n, drop(v, start + column, n, dropout));
    }
};

extern "C" __global__ void __launch_bounds__(256) gemm_forward(
    const T* a_prev, const T* W, const T* b, T* a, T* h, T* z, int rows, int m, int n,
    unsigned threshold, T keep, unsigned key0, unsigned key1, unsigned layer, const int* ctl)
{
    const Dropout dropout = make_dropout(threshold, keep, key0, key1, layer, ctl);
    multiply(Operand<true>{a_prev, rows, m}, Operand<false>{W, m, n}, nullptr, Forward{b, a, h, z, n, dropout});
}

struct Hidden {
    const T *a, *z;
    T* out;
    int m;
    Dropout dropout;
    int* ctl;

    // delta comes back through the dropout first and through sigma second, the other way round than a went.
    __device__ __forceinline__ void operator()(int row, int column, Four v) const
    {
        const long long start = (long long)row * m;
        const Four a_here = load(a + start, column, m), z_here = z ? load(z + start, column, m) : Four{};
        v = drop(v, start + column, m, dropout);
        bool all_finite = true;
        for (int k = 0; k < 4; ++k) {
            v.x[k] *= sigma_prime(z_here.x[k], a_here.x[k]);
            all_finite = all_finite && (column + k >= m || is_finite(v.x[k]));
        }
        store(out + start, column, m, v);
        latch_unless(all_finite, ctl);
    }
};

extern "C" __global__ void __launch_bounds__(256) gemm_hidden(
    const T* delta, const T* W, const T* a, const T* z, T* out, int rows, int m, int n,
    unsigned threshold, T keep, unsigned key0, unsigned key1, unsigned layer, int* ctl)
{
    const Dropout dropout = make_dropout(threshold, keep, key0, key1, layer, ctl);
    multiply(Operand<true>{delta, rows, n}, Operand<true>{W, m, n}, nullptr, Hidden{a, z, out, m, dropout, ctl});
}

struct Gradient {
    const T *W, *mask;
    T* dW;
    int n;
    T decay;

    // The mask comes last: what is not connected has no penalty either.
    __device__ __forceinline__ void operator()(int row, int column, Four v) const
    {
        const long long start = (long long)row * n;
        if (W) {
            const Four weight = load(W + start, column, n);
            for (int k = 0; k < 4; ++k) v.x[k] += decay * weight.x[k];
        }
        if (mask) {
            const Four connected = load(mask + start, column, n);
            for (int k = 0; k < 4; ++k) v.x[k] *= connected.x[k];
        }
        store(dW + start, column, n, v);
    }
};

extern "C" __global__ void __launch_bounds__(256) gemm_gradient(
    const T* a_prev, const T* delta, const T* W, const T* mask, T* dW, T* db, int rows, int m, int n, T decay)
{
    const Gradient gradient{decay == T(0) ? nullptr : W, mask, dW, n, decay};
    multiply(Operand<false>{a_prev, rows, m}, Operand<false>{delta, rows, n}, db, gradient);
}
