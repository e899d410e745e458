// What a trajectory computes between evaluations of the network, in float32; what it keeps of
// networks in half precision is converted on the way.
//
// scripts/kernels.py compiles this to kernels.ptx, which is what ships and what the driver
// compiles for the GPU at hand. Products and sums are rounded one by one (no fused
// multiply-add), as the host rounds them. Every kernel takes any number of blocks. Pointers may be
// equal, as each element depends on the same element of what is read; they may not overlap
// otherwise.

typedef long long Index;

#define EACH(i, n)                                                               \
    _Pragma("unroll 1")                                                          \
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < (n);        \
         i += (Index)gridDim.x * blockDim.x)

// out = base + the sum of coefficient * term, clipped. base may be null; the first `terms` of
// eight are added, at least one. The first `twins` elements are also written to twin.
// NaN stays NaN.
extern "C" __global__ void combine(
    float* out, const float* base, Index n, float* twin, Index twins, int clip, float low,
    float high, int terms, const float* p0, float c0, const float* p1, float c1, const float* p2,
    float c2, const float* p3, float c3, const float* p4, float c4, const float* p5, float c5,
    const float* p6, float c6, const float* p7, float c7)
{
    EACH(i, n)
    {
        float sum = p0[i] * c0;
        if (base) sum = base[i] + sum;
        if (terms > 1) sum += p1[i] * c1;
        if (terms > 2) sum += p2[i] * c2;
        if (terms > 3) sum += p3[i] * c3;
        if (terms > 4) sum += p4[i] * c4;
        if (terms > 5) sum += p5[i] * c5;
        if (terms > 6) sum += p6[i] * c6;
        if (terms > 7) sum += p7[i] * c7;
        if (clip) sum = sum < low ? low : (sum > high ? high : sum);
        out[i] = sum;
        if (i < twins) twin[i] = sum;
    }
}

union Bits
{
    float value;
    unsigned bits;
};

// Element i of an array: of type 0 float32, of type 1 float16, of type 2 bfloat16.
static __device__ float read(const void* array, int type, Index i)
{
    if (type == 0) return ((const float*)array)[i];
    unsigned half = ((const unsigned short*)array)[i];
    Bits made;
    made.bits = half << 16;
    if (type == 2) return made.value;
    unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) made.value = (float)fraction * 5.9604644775390625e-8f;
    else made.bits = ((exponent == 31 ? 255 : exponent + 112) << 23) | fraction << 13;
    made.bits |= sign;
    return made.value;
}

// Set an element, rounded to the nearest, halfway to even. NaN stays NaN.
static __device__ void write(void* array, int type, Index i, float value)
{
    if (type == 0)
    {
        ((float*)array)[i] = value;
        return;
    }
    Bits given;
    given.value = value;
    unsigned all = given.bits, sign = all >> 16 & 0x8000u, size = all & 0x7fffffffu, made;
    if (type == 2)
        made = size > 0x7f800000u ? all >> 16 | 64 : (all + 0x7fffu + (all >> 16 & 1)) >> 16;
    else if (size > 0x7f800000u) made = sign | 0x7e00u;
    else if (size >= 0x477ff000u) made = sign | 0x7c00u;
    else if (size < 0x38800000u)
    {
        given.bits = size;
        given.value += 0.5f;
        made = sign | (given.bits - 0x3f000000u);
    }
    else made = sign | (size + 0xfffu + (size >> 13 & 1) - 0x38000000u) >> 13;
    ((unsigned short*)array)[i] = (unsigned short)made;
}

// out = the sum of coefficient * term, of the first `terms` of four, at least one. types holds two
// bits for each array: out's are the lowest.
extern "C" __global__ void blend(
    void* out, Index n, int types, int terms, const void* p0, float c0, const void* p1, float c1,
    const void* p2, float c2, const void* p3, float c3)
{
    EACH(i, n)
    {
        float sum = read(p0, types >> 2 & 3, i) * c0;
        if (terms > 1) sum += read(p1, types >> 4 & 3, i) * c1;
        if (terms > 2) sum += read(p2, types >> 6 & 3, i) * c2;
        if (terms > 3) sum += read(p3, types >> 8 & 3, i) * c3;
        write(out, types & 3, i, sum);
    }
}

// out = value.
extern "C" __global__ void fill(float* out, Index n, float value)
{
    EACH(i, n) out[i] = value;
}

// Classifier-free guidance (arXiv 2207.12598) of [n / row] samples of `row` elements, in the
// first `guided` elements of each: given = (given - without) * scale + without.
extern "C" __global__ void guide(
    float* given, const float* without, const float* scales, Index n, Index row, Index guided)
{
    EACH(i, n)
    {
        if (i % row < guided)
            given[i] = (given[i] - without[i]) * scales[i / row] + without[i];
    }
}

// Noise with the standard deviation that a learned variance (-1 to 1) chooses between two
// (arXiv 2102.09672, equation 15): out = noise * exp(((choice + 1) / 2 * span + low) / 2).
extern "C" __global__ void deviate(
    float* out, const float* noise, const float* choice, Index n, float low, float span)
{
    EACH(i, n) out[i] = noise[i] * expf(0.5f * ((choice[i] + 1.0f) * 0.5f * span + low));
}

// Where there is NaN or infinity in values, *first becomes at most step.
extern "C" __global__ void inspect(const float* values, Index n, int step, int* first)
{
    EACH(i, n)
    {
        if (!isfinite(values[i])) atomicMin(first, step);
    }
}
