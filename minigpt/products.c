/* Products with packed weights on a CPU: y = x Wᵀ + b, from weights in float32, float16 or int8.

With one row of x, what counts is how fast W comes from memory; with many, how many of its numbers are multiplied while
they are in registers. So W (out, in) is cut into panels of PANEL outputs, in which the numbers that meet one input lie
side by side. It is read from its first byte to its last, whole registers at a time, and what was read meets up to
HEIGHT rows. Each row is summed in the same order, however many there are: alone and in a batch it is the same.

The work goes in steps. In one, 4 bytes of each row meet one or two numbers of each output of a panel:

    float32, float16   an input, x (rows, in), and W [panel][in][PANEL]; sums in float32
    int8               two inputs, rounded to 16 bits, and W [panel][in / 2][PANEL][2]; sums in whole numbers

`packed.py` lays out the weights. The machine's compiler makes a library of `one_token.c`, which includes this file. */

#include <float.h>

#include "vectors.h"

enum { INPUTS = 1 << 15, LEAST = 4 * HEIGHT, MOST = 16 * HEIGHT };  // what all panels meet before the next rows come

const int panel = PANEL;

enum { FLOAT32, FLOAT16, INT8 };
const int float32 = FLOAT32, float16 = FLOAT16;  // for packed.py: which kinds there are
#ifdef __AVX2__
const int int8 = INT8;
#endif

/* A layer with weights w of one kind, whose last panel is filled up; scale and bias (out). */
typedef struct {
    const void *w;
    const float *scale, *bias;
    ptrdiff_t in, out;
    int kind;
} Linear;

typedef union { float real; int32_t whole; } Number;

/* Rows of x, `steps` long, of which `depth` steps meet a piece of a panel, w: their products are added to sums.

At each step one more address is asked for of the piece that comes `next`, `stride` bytes on. */
typedef struct {
    const Number *x;
    ptrdiff_t steps, depth;
    const char *w, *next;
    ptrdiff_t stride;
    Number (*sums)[PANEL];
} Piece;

/* ---- a tile: so many rows that their sums stay in registers */

typedef void (*Tile)(const int height, Piece of);
typedef Reals (*Read)(const char *);  // the weights at an address, as float32

INLINE void add_reals(Read read, const int size, const int height, Piece of) {
    Reals tile[HEIGHT][WIDTH] = {0};
#pragma GCC unroll 2
    for (ptrdiff_t k = 0; k < of.depth; k++) {
        Reals weights[WIDTH];
        __builtin_prefetch(of.next + k * of.stride);
        UNROLLED for (int v = 0; v < WIDTH; v++) weights[v] = read(of.w + (k * PANEL + v * LANES) * size);
        UNROLLED for (int r = 0; r < height; r++)
            UNROLLED for (int v = 0; v < WIDTH; v++) tile[r][v] += of.x[r * of.steps + k].real * weights[v];
    }
    UNROLLED for (int r = 0; r < height; r++)
        UNROLLED for (int v = 0; v < WIDTH; v++) *(Reals *)&of.sums[r][v * LANES] += tile[r][v];
}

INLINE Reals read_float32(const char *from) { return *(const Reals *)from; }
INLINE void tile_float32(const int height, Piece of) { add_reals(read_float32, 4, height, of); }

INLINE Reals read_float16(const char *from) {
#if defined(WITH_512_BITS)
    return (Reals)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)from));
#elif defined(__F16C__)
    return (Reals)_mm256_cvtph_ps(_mm_loadu_si128((const void *)from));
#else
    typedef _Float16 Halves __attribute__((vector_size(2 * LANES), aligned(2)));
    return __builtin_convertvector(*(const Halves *)from, Reals);
#endif
}
INLINE void tile_float16(const int height, Piece of) { add_reals(read_float16, 2, height, of); }

#ifdef __AVX2__
#ifdef WITH_512_BITS
#define WORDS(NAME) _mm512_##NAME
typedef __m512i Words;  // numbers of 16 bits
INLINE Words read_int8(const char *from) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)from)); }
#else
#define WORDS(NAME) _mm256_##NAME
typedef __m256i Words;
INLINE Words read_int8(const char *from) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)from)); }
#endif

INLINE void tile_int8(const int height, Piece of) {
    Wholes tile[HEIGHT][WIDTH] = {0};
    for (ptrdiff_t k = 0; k < of.depth; k++) {
        Words weights[WIDTH];
        __builtin_prefetch(of.next + k * of.stride);
        UNROLLED for (int v = 0; v < WIDTH; v++) weights[v] = read_int8(of.w + (k * PANEL + v * LANES) * 2);
        UNROLLED for (int r = 0; r < height; r++) {
            const Words pair = WORDS(set1_epi32)(of.x[r * of.steps + k].whole);
            UNROLLED for (int v = 0; v < WIDTH; v++) tile[r][v] += (Wholes)WORDS(madd_epi16)(pair, weights[v]);
        }
    }
    UNROLLED for (int r = 0; r < height; r++)
        UNROLLED for (int v = 0; v < WIDTH; v++) *(Wholes *)&of.sums[r][v * LANES] += tile[r][v];
}
#endif

/* ---- all rows, and all panels of one thread */

/* Tiles of about one height, of which each asks for its share of the next piece. A step takes `bytes` of a panel. */
INLINE void add(Tile tile, const int bytes, ptrdiff_t rows, Piece of) {
    const ptrdiff_t tiles = (rows + HEIGHT - 1) / HEIGHT;
    of.next = of.w + of.depth * bytes;
    of.stride = bytes / tiles;
    for (ptrdiff_t left = tiles; left > 0; left--) {
        const ptrdiff_t height = (rows + left - 1) / left;
        switch (height) {  // a height that the compiler knows
            case 1: tile(1, of); break;
            case 2: tile(2, of); break;
            case 3: tile(3, of); break;
            case 4: tile(4, of); break;
            case 5: tile(5, of); break;
            case 6: tile(6, of);
        }
        rows -= height;
        of.x += height * of.steps;
        of.next += of.depth * of.stride;
        of.sums += height;
    }
}

INLINE float from_real(Number sum) { return sum.real; }
INLINE float from_whole(Number sum) { return (float)sum.whole; }

/* Rows of x, `steps` long, and the factors of their products, `apart` from each other. */
typedef struct {
    const Number *x;
    ptrdiff_t rows, steps;
    const float *factors;
    ptrdiff_t apart;
} Rows;

/* For the panels from `first` to before `last`, what is added up, times its scale and factor, with its bias, as rows of
y that are `wide` numbers apart. */
INLINE void multiply(Tile tile, const int bytes, float (*from)(Number), const Linear *layer, Rows of, float *y,
                     ptrdiff_t wide, ptrdiff_t first, ptrdiff_t last) {
    const ptrdiff_t most = INPUTS / of.steps < LEAST ? LEAST : least(INPUTS / of.steps, MOST);
    Number sums[MOST][PANEL];
    for (ptrdiff_t row = 0; row < of.rows; row += most) {
        const ptrdiff_t some = least(most, of.rows - row);
        for (ptrdiff_t p = first; p < last; p++) {
            const char *w = (const char *)layer->w + p * of.steps * bytes;
            Piece piece = {.x = of.x + row * of.steps, .steps = of.steps, .w = w, .sums = sums};
            for (ptrdiff_t r = 0; r < some; r++)
                for (int i = 0; i < PANEL; i++) sums[r][i].whole = 0;
            for (ptrdiff_t k = 0; k < of.steps; k += DEPTH, piece.x += DEPTH, piece.w += DEPTH * bytes) {
                piece.depth = least(DEPTH, of.steps - k);
                add(tile, bytes, some, piece);
            }
            for (ptrdiff_t r = 0; r < some; r++)
                for (ptrdiff_t o = p * PANEL; o < least(layer->out, (p + 1) * PANEL); o++) {
                    const float times = layer->scale[o] * of.factors[(row + r) * of.apart];
                    y[(row + r) * wide + o] = from(sums[r][o - p * PANEL]) * times + layer->bias[o];
                }
        }
    }
}

#ifdef __AVX2__
INLINE void write_int16(int16_t *to, Wholes numbers) {
#ifdef WITH_512_BITS
    _mm256_storeu_si256((void *)to, _mm512_cvtepi32_epi16((__m512i)numbers));
#else
    const __m256i halves = _mm256_packs_epi32((__m256i)numbers, (__m256i)numbers);
    _mm_storeu_si128((void *)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0xd8)));
#endif
}

/* A row (in) in whole numbers, of which `most` is its largest, and what one of them stands for.

Its last register is filled up with zeros. What stands behind that meets weights of zero. */
static void round_row(const float *x, ptrdiff_t in, float most, int16_t *rounded, float *factor) {
    const Number nearest = {.real = 3 << 22};  // a sum with this is rounded to a whole number, its last bits
    Reals rest = {0};
    Wholes high = {0};
    const ptrdiff_t full = in / LANES * LANES;
    for (ptrdiff_t k = full; k < in; k++) rest[k - full] = x[k];
#define AT(k) ((k) < full ? *(const Reals *)(x + (k)) : rest)
    for (ptrdiff_t k = 0; k < in; k += LANES) {  // the bits of positive numbers are in order, and last those of NaN
        const Wholes bits = (Wholes)AT(k) & INT32_MAX, higher = bits > high;
        high = (bits & higher) | (high & ~higher);
    }
    Number largest = {.real = 1e-12f};
    for (int i = 0; i < LANES; i++)
        if (high[i] > largest.whole) largest.whole = high[i];
    const float times = most / largest.real;
    for (ptrdiff_t k = 0; k < in; k += LANES)
        write_int16(rounded + k, (Wholes)(AT(k) * times + nearest.real) - nearest.whole);
    *factor = largest.real <= FLT_MAX ? largest.real / most : NAN;
}
#endif

/* Where rows are rounded: whole numbers (rows, in filled up to whole panels), and factors (rows). */
typedef struct {
    int16_t *numbers;
    float *factors;
} Rounded;

/* y (rows, out), whose rows are `wide` numbers apart, of x (rows, in), by all threads of a team. */
static void product(const Linear *layer, const float *x, float *y, ptrdiff_t wide, ptrdiff_t rows, int threads,
                    Rounded room) {
    static const float one = 1;
    const ptrdiff_t in = layer->in, panels = (layer->out + PANEL - 1) / PANEL;
    Rows of = {(const Number *)x, rows, in, &one, 0};
#ifdef __AVX2__
    if (layer->kind == INT8) {
        const float most = (float)least(INT16_MAX, INT32_MAX / (INT8_MAX * filled(in)));  // so that no sum overflows
#pragma omp for
        for (ptrdiff_t r = 0; r < rows; r++)
            round_row(x + r * in, in, most, room.numbers + r * filled(in), room.factors + r);
        of = (Rows){(const Number *)room.numbers, rows, filled(in) / 2, room.factors, 1};
    }
#endif
#pragma omp for
    for (int t = 0; t < threads; t++) {
        const ptrdiff_t first = panels * t / threads, last = panels * (t + 1) / threads;
        switch (layer->kind) {
            case FLOAT32: multiply(tile_float32, PANEL * 4, from_real, layer, of, y, wide, first, last); break;
            case FLOAT16: multiply(tile_float16, PANEL * 2, from_real, layer, of, y, wide, first, last); break;
#ifdef __AVX2__
            case INT8: multiply(tile_int8, PANEL * 2, from_whole, layer, of, y, wide, first, last);
#endif
        }
    }
}

/* ---- what packed.py calls: x (rows, in) -> y (rows, out) */

void linear(const Linear *layer, const float *x, float *y, ptrdiff_t rows, int threads, Rounded room) {
#pragma omp parallel num_threads(threads)
    product(layer, x, y, layer->out, rows, threads, room);
}
