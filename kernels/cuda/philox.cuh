// Dropout by Philox4x32-10: the bits of kernels/philox.py, a function of the place and the key alone.

struct Dropout {
    unsigned threshold;  // an element is dropped if its word is below; 0 means no dropout
    T keep;              // 1 / (1 - rate)
    unsigned key0, key1, layer, epoch, step;
};

struct Words { unsigned w[4]; };

// The step is ctl[1], the epoch ctl[5]; they are only read where there is dropout.
__device__ __forceinline__ Dropout make_dropout(
    unsigned threshold, T keep, unsigned key0, unsigned key1, unsigned layer, const int* ctl)
{
    return {threshold, keep, key0, key1, layer, threshold ? (unsigned)ctl[5] : 0u, threshold ? (unsigned)ctl[1] : 0u};
}

// Counter (block, step, epoch, layer): the words of elements 4 block to 4 block + 3.
__device__ __forceinline__ Words philox(unsigned block, const Dropout& d)
{
    unsigned c0 = block, c1 = d.step, c2 = d.epoch, c3 = d.layer, k0 = d.key0, k1 = d.key1;
    for (int round = 0; round < 10; ++round) {
        const unsigned long long p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
        c0 = (unsigned)(p1 >> 32) ^ c1 ^ k0;
        c1 = (unsigned)p1;
        c2 = (unsigned)(p0 >> 32) ^ c3 ^ k1;
        c3 = (unsigned)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Element i (row-major in the batch) after dropout.
__device__ __forceinline__ T after_dropout(T x, long long i, const Dropout& d)
{
    if (d.threshold == 0) return x;
    const Words words = philox((unsigned)(i / 4), d);
    const unsigned w01 = i % 2 ? words.w[1] : words.w[0], w23 = i % 2 ? words.w[3] : words.w[2];  // stay in registers
    return (i % 4 < 2 ? w01 : w23) >= d.threshold ? x * d.keep : T(0);
}

// Elements i to i + 3 after dropout, i a multiple of 4: one block of words for all.
__device__ __forceinline__ Four after_dropout(Four v, long long i, const Dropout& d)
{
    if (d.threshold == 0) return v;
    const Words words = philox((unsigned)(i / 4), d);
    for (int k = 0; k < 4; ++k) v.x[k] = words.w[k] >= d.threshold ? v.x[k] * d.keep : T(0);
    return v;
}
