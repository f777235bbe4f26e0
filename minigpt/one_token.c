/* One more token of every row, by one call: the pass of a model whose linear layers are those of `products.c`.

A pass of one token is so little work that what starts and ends its some hundred operations is a large part of it. Here
all threads go through all layers together. A row is computed as it would be alone, whatever stands beside it.

The machine's compiler makes a library of this file; `decoding/one_call.py` calls it, and `packed.py` its products.

B rows, H heads, D head size, C width, V vocabulary. */

#include <string.h>

#include "products.c"

/* Scale and bias of a layer norm (C), and what is added to the variance. */
typedef struct {
    const float *scale, *bias;
    float eps;
} Norm;

typedef struct {
    Norm ln_1, ln_2;
    Linear qkv, project, widen, narrow;
} Layer;

typedef struct {
    ptrdiff_t C, H, V, num_layers, num_pieces;  // of the head
    const float *wte, *wpe;
    const Layer *layers;
    Norm last;
    const Linear *pieces;
} Model;

/* Keys and values (num_layers, 2, B, H, columns, D) in float32 or, if `half`, in float16.

A new token stands in column `length`, or, where rows differ, in a column of `lengths`. */
typedef struct {
    char *numbers;
    int half;
    ptrdiff_t columns, length;
    const int64_t *lengths;
} Cache;

/* ---- numbers that do not fill a register */

/* The first `number` of some numbers that take `size` bytes each, and zeros behind them. */
INLINE Reals take(Read read, const int size, const char *from, ptrdiff_t number) {
    if (number >= LANES) return read(from);
    char some[sizeof(Reals)] = {0};
    memcpy(some, from, (size_t)(number * size));
    return read(some);
}

INLINE Reals load(const float *from, ptrdiff_t number) { return take(read_float32, 4, (const char *)from, number); }

INLINE void store(float *to, ptrdiff_t number, Reals numbers) {
    if (number >= LANES) *(Reals *)to = numbers;
    else memcpy(to, &numbers, (size_t)(number * 4));
}

INLINE void store_float16(char *to, ptrdiff_t number, Reals numbers) {
    char some[2 * LANES];
#if defined(WITH_512_BITS)
    _mm256_storeu_si256((void *)some, _mm512_cvtps_ph((__m512)numbers, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    _mm_storeu_si128((void *)some, _mm256_cvtps_ph((__m256)numbers, _MM_FROUND_TO_NEAREST_INT));
#else
    typedef _Float16 Halves __attribute__((vector_size(2 * LANES), aligned(2)));
    *(Halves *)some = __builtin_convertvector(numbers, Halves);
#endif
    memcpy(to, some, (size_t)(2 * least(number, LANES)));
}

INLINE float total(Reals numbers) {
    typedef float Four __attribute__((vector_size(16)));
    const union { Reals all; Four parts[LANES / 4]; } of = {numbers};
    Four sum = of.parts[0];
    UNROLLED for (int i = 1; i < LANES / 4; i++) sum += of.parts[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* ---- what is not a product */

/* Of x (C), to which y is added first, the layer norm. */
static void norm(float *x, const float *y, Norm by, ptrdiff_t C, float *to) {
    Reals sums = {0}, squares = {0};
    for (ptrdiff_t c = 0; c < C; c += LANES) {
        const Reals some = load(x + c, C - c) + load(y + c, C - c);
        store(x + c, C - c, some);
        sums += some;
    }
    const float mean = total(sums) / (float)C;
    for (ptrdiff_t c = 0; c < C; c += LANES) {
        const Reals from_mean = visible(c, C, load(x + c, C - c) - mean, 0);
        squares += from_mean * from_mean;
    }
    const float times = 1 / __builtin_sqrtf(total(squares) / (float)C + by.eps);
    for (ptrdiff_t c = 0; c < C; c += LANES)
        store(to + c, C - c, (load(x + c, C - c) - mean) * times * load(by.scale + c, C - c) + load(by.bias + c, C - c));
}

/* Of some registers of numbers, `left` numbers in all: how well keys (number, D) answer the query q, added to scores. */
INLINE void answer(Read read, const int size, const int width, const ptrdiff_t left, const float *q, const char *keys,
                   ptrdiff_t number, ptrdiff_t D, float *scores) {
    Reals query[width];
    UNROLLED for (int v = 0; v < width; v++) query[v] = load(q + v * LANES, left - v * LANES);
    for (ptrdiff_t s = 0; s < number; s++, keys += D * size) {
        Reals sums = {0};
        UNROLLED for (int v = 0; v < width; v++)
            sums += query[v] * take(read, size, keys + v * LANES * size, left - v * LANES);
        scores[s] += total(sums);
    }
}

/* Of some registers, the sum y of values (number, D) by their weights. */
INLINE void mix(Read read, const int size, const int width, const ptrdiff_t left, const float *weights,
                const char *values, ptrdiff_t number, ptrdiff_t D, float *y) {
    Reals sums[width];
    UNROLLED for (int v = 0; v < width; v++) sums[v] = (Reals){0};
    for (ptrdiff_t s = 0; s < number; s++, values += D * size)
        UNROLLED for (int v = 0; v < width; v++)
            sums[v] += weights[s] * take(read, size, values + v * LANES * size, left - v * LANES);
    UNROLLED for (int v = 0; v < width; v++) store(y + v * LANES, left - v * LANES, sums[v]);
}

// Registers of numbers, from number d of D, that are computed at once.
#define WITH(FUNCTION, ...)                                                         \
    if (D - d >= 8 * LANES) FUNCTION(read, size, 8, 8 * LANES, __VA_ARGS__);        \
    else if (D - d >= 4 * LANES) FUNCTION(read, size, 4, 4 * LANES, __VA_ARGS__);   \
    else if (D - d >= LANES) FUNCTION(read, size, 1, LANES, __VA_ARGS__);           \
    else FUNCTION(read, size, 1, D - d, __VA_ARGS__)
INLINE ptrdiff_t after(ptrdiff_t d, ptrdiff_t D) {
    return d + (D - d >= 8 * LANES ? 8 : D - d >= 4 * LANES ? 4 : 1) * LANES;
}

/* y (D), the values (number, D) of one head, weighted by how well its keys answer the query q. */
INLINE void attend(Read read, const int size, const float *q, const char *keys, const char *values, ptrdiff_t number,
                   ptrdiff_t D, float *scores, float *y) {
    memset(scores, 0, (size_t)(number * 4));
    for (ptrdiff_t d = 0; d < D; d = after(d, D)) WITH(answer, q + d, keys + d * size, number, D, scores);
    weigh(scores, number, filled(number), LOG2_E / __builtin_sqrtf((float)D));
    for (ptrdiff_t d = 0; d < D; d = after(d, D)) WITH(mix, scores, values + d * size, number, D, y + d);
}

/* Head number `n` of all rows of a layer: its new key and value go into the cache, and its query looks back. */
static void look_back(const float *qkv, Cache of, ptrdiff_t layer, ptrdiff_t n, ptrdiff_t B, ptrdiff_t H, ptrdiff_t D,
                      float *scores, float *mixed) {
    const ptrdiff_t row = n / H, at = of.lengths ? of.lengths[row] : of.length, size = of.half ? 2 : 4;
    const float *q = qkv + row * 3 * H * D + n % H * D, *k = q + H * D, *v = k + H * D;
    char *keys = of.numbers + (layer * 2 * B * H + n) * of.columns * D * size;
    char *values = keys + B * H * of.columns * D * size;
    if (of.half) {
        for (ptrdiff_t d = 0; d < D; d += LANES) {
            store_float16(keys + (at * D + d) * 2, D - d, load(k + d, D - d));
            store_float16(values + (at * D + d) * 2, D - d, load(v + d, D - d));
        }
        attend(read_float16, 2, q, keys, values, at + 1, D, scores, mixed + n * D);
    } else {
        memcpy(keys + at * D * 4, k, (size_t)(D * 4));
        memcpy(values + at * D * 4, v, (size_t)(D * 4));
        attend(read_float32, 4, q, keys, values, at + 1, D, scores, mixed + n * D);
    }
}

/* tanh-GELU, y of x, by all threads of a team. */
static void bend(const float *x, float *y, ptrdiff_t number) {
#pragma omp for
    for (ptrdiff_t n = 0; n < number; n += LANES) {
        const Reals some = load(x + n, number - n);
        store(y + n, number - n, some / (1 + gelu_power(some)));
    }
}

/* ---- what packed.py calls, for a pass of many tokens */

void gelu(const float *x, float *y, ptrdiff_t number, int threads) {
#pragma omp parallel num_threads(threads)
    bend(x, y, number);
}

/* ---- what one_call.py calls */

/* Numbers of float32 that a pass needs as room. */
ptrdiff_t room_of_one_token(const Model *of, ptrdiff_t B, ptrdiff_t columns, int threads) {
    return B * (10 * of->C + filled(4 * of->C) / 2 + 1) + threads * filled(columns);
}

/* Logits (B, V) of the token after `ids` (B), whose keys and values then stand in the cache. */
void one_token(const Model *of, const int64_t *ids, Cache cache, ptrdiff_t B, float *logits, float *room, int threads) {
    const ptrdiff_t C = of->C, H = of->H, D = C / H, all = 4 * C * B;
    float *x = room, *normed = x + B * C, *added = normed + B * C, *qkv = added + B * C, *wide = qkv + 3 * B * C;
    float *factors = wide + all, *scores = factors + B, *numbers = scores + threads * filled(cache.columns);
    const Rounded rounded = {(int16_t *)numbers, factors};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (ptrdiff_t r = 0; r < B; r++) {
            memcpy(x + r * C, of->wte + ids[r] * C, (size_t)(C * 4));
            memcpy(added + r * C, of->wpe + (cache.lengths ? cache.lengths[r] : cache.length) * C, (size_t)(C * 4));
        }
        for (ptrdiff_t l = 0; l < of->num_layers; l++) {
            const Layer *layer = of->layers + l;
#pragma omp for
            for (ptrdiff_t r = 0; r < B; r++) norm(x + r * C, added + r * C, layer->ln_1, C, normed + r * C);
            product(&layer->qkv, normed, qkv, 3 * C, B, threads, rounded);
#pragma omp for
            for (int t = 0; t < threads; t++)
                for (ptrdiff_t n = B * H * t / threads; n < B * H * (t + 1) / threads; n++)
                    look_back(qkv, cache, l, n, B, H, D, scores + t * filled(cache.columns), normed);
            product(&layer->project, normed, added, C, B, threads, rounded);
#pragma omp for
            for (ptrdiff_t r = 0; r < B; r++) norm(x + r * C, added + r * C, layer->ln_2, C, normed + r * C);
            product(&layer->widen, normed, wide, 4 * C, B, threads, rounded);
            bend(wide, wide, all);
            product(&layer->narrow, wide, added, C, B, threads, rounded);
        }
#pragma omp for
        for (ptrdiff_t r = 0; r < B; r++) norm(x + r * C, added + r * C, of->last, C, normed + r * C);
        for (ptrdiff_t piece = 0, at = 0; piece < of->num_pieces; at += of->pieces[piece++].out)
            product(of->pieces + piece, normed, logits + at, of->V, B, threads, rounded);
    }
}
