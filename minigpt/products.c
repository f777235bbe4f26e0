/* Products with packed weights on a CPU: y = x Wᵀ + b in float32, from weights in float32, float16 or int8.

With one row of x, what counts is how fast W comes from memory; with many, how many of its numbers are multiplied while
they are in registers. So W (out, in) is cut into panels of PANEL outputs, [panel][in][PANEL]: the numbers that meet one
input lie side by side. It is read from its first byte to its last, whole registers at a time, and what was read meets
up to HEIGHT rows. Each row is summed in the same order, however many there are: alone and in a batch it is the same.

The machine's compiler makes a library of this file; `packed.py` lays out the weights, and calls it. */

#include <stddef.h>
#include <stdint.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16 };  // float32 numbers in a register
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

// Sixteen registers hold HEIGHT x WIDTH of sums, WIDTH of weights, and an input in all lanes.
enum { HEIGHT = 6, WIDTH = 2, PANEL = WIDTH * LANES };
enum { DEPTH = 192 };  // inputs after which sums leave the registers: of a panel, what the nearest cache holds
enum { INPUTS = 1 << 15, LEAST = 4 * HEIGHT, MOST = 16 * HEIGHT };  // what all panels meet before the next rows come

const int panel = PANEL;

#define INLINE static inline __attribute__((always_inline))
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef Lanes (*Read)(const char *);  // the weights at an address, as float32

INLINE Lanes read_float32(const char *from) { return *(const Lanes *)from; }

INLINE Lanes read_float16(const char *from) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)from));
#elif defined(__F16C__)
    return (Lanes)_mm256_cvtph_ps(_mm_loadu_si128((const void *)from));
#else
    typedef _Float16 Halves __attribute__((vector_size(2 * LANES), aligned(2)));
    return __builtin_convertvector(*(const Halves *)from, Lanes);
#endif
}

INLINE Lanes read_int8(const char *from) {
#if defined(__AVX512F__)
    return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)));
#elif defined(__AVX2__)
    return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)from)));
#else
    typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1)));
    return __builtin_convertvector(*(const Bytes *)from, Lanes);
#endif
}

INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* Add to sums (height, PANEL) the products of `depth` inputs of so many rows with a piece of a panel.

A weight takes `size` bytes. At each step, one more address of what is needed `next` is asked for, `stride` bytes on. */
INLINE void add_tile(Read read, const int size, const int height, const float *x, ptrdiff_t in, const char *w,
                     ptrdiff_t depth, const char *next, ptrdiff_t stride, float (*sums)[PANEL]) {
    Lanes tile[HEIGHT][WIDTH] = {0};
#pragma GCC unroll 2
    for (ptrdiff_t k = 0; k < depth; k++) {
        Lanes weights[WIDTH];
        __builtin_prefetch(next + k * stride);
#pragma GCC unroll 8
        for (int v = 0; v < WIDTH; v++) weights[v] = read(w + (k * PANEL + v * LANES) * size);
#pragma GCC unroll 8
        for (int r = 0; r < height; r++)
#pragma GCC unroll 8
            for (int v = 0; v < WIDTH; v++) tile[r][v] += x[r * in + k] * weights[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < height; r++)
#pragma GCC unroll 8
        for (int v = 0; v < WIDTH; v++) *(Lanes *)&sums[r][v * LANES] += tile[r][v];
}

/* The same for any number of rows, in tiles of about one height, of which each fetches its share of the next piece. */
INLINE void add(Read read, const int size, const float *x, ptrdiff_t rows, ptrdiff_t in, const char *w, ptrdiff_t depth,
                float (*sums)[PANEL]) {
    const ptrdiff_t tiles = (rows + HEIGHT - 1) / HEIGHT, stride = PANEL * size / tiles;
    const char *next = w + depth * PANEL * size;
    for (ptrdiff_t left = tiles, r = 0; left > 0; left--, next += depth * stride) {
        const ptrdiff_t height = (rows - r + left - 1) / left;
        const float *from = x + r * in;
        switch (height) {  // of a constant height, all sums are in registers
            case 1: add_tile(read, size, 1, from, in, w, depth, next, stride, sums + r); break;
            case 2: add_tile(read, size, 2, from, in, w, depth, next, stride, sums + r); break;
            case 3: add_tile(read, size, 3, from, in, w, depth, next, stride, sums + r); break;
            case 4: add_tile(read, size, 4, from, in, w, depth, next, stride, sums + r); break;
            case 5: add_tile(read, size, 5, from, in, w, depth, next, stride, sums + r); break;
            case 6: add_tile(read, size, 6, from, in, w, depth, next, stride, sums + r);
        }
        r += height;
    }
}

/* One thread's panels, from `first` to before `last`. */
INLINE void multiply(Read read, const int size, const float *x, const char *w, const float *scale, const float *bias,
                     float *y, ptrdiff_t rows, ptrdiff_t in, ptrdiff_t out, ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t most = INPUTS / in < LEAST ? LEAST : least(INPUTS / in, MOST);
    float sums[MOST][PANEL];
    for (ptrdiff_t row = 0; row < rows; row += most) {
        const ptrdiff_t some = least(most, rows - row);
        for (ptrdiff_t p = first; p < last; p++) {
            const char *of_panel = w + p * in * PANEL * size;
            for (ptrdiff_t r = 0; r < some; r++)
                for (int i = 0; i < PANEL; i++) sums[r][i] = 0;
            for (ptrdiff_t k = 0; k < in; k += DEPTH)
                add(read, size, x + row * in + k, some, in, of_panel + k * PANEL * size, least(DEPTH, in - k), sums);
            for (ptrdiff_t r = 0; r < some; r++)
                for (ptrdiff_t o = p * PANEL; o < least(out, (p + 1) * PANEL); o++)
                    y[(row + r) * out + o] = sums[r][o - p * PANEL] * scale[o] + bias[o];
        }
    }
}

/* x (rows, in); w as above, its last panel filled up; scale and bias (out); y (rows, out). */
#define LINEAR(KIND, SIZE)                                                                                             \
    void linear_##KIND(const float *x, const char *w, const float *scale, const float *bias, float *y, ptrdiff_t rows, \
                       ptrdiff_t in, ptrdiff_t out, int threads) {                                                     \
        const ptrdiff_t panels = (out + PANEL - 1) / PANEL;                                                            \
        _Pragma("omp parallel for num_threads(threads)") for (int t = 0; t < threads; t++)                             \
            multiply(read_##KIND, SIZE, x, w, scale, bias, y, rows, in, out, panels * t / threads,                     \
                     panels * (t + 1) / threads);                                                                      \
    }
LINEAR(float32, 4)
LINEAR(float16, 2)
LINEAR(int8, 1)
