/* Causal attention and the MLP of a training step on a CPU, in float32, with their gradients.

Attention computes some queries of one head at a time (Dao et al., 2022): their scores stay in the processor's cache,
and no (T, T) matrix goes through memory. The MLP computes some positions at a time, so that what is wide goes through
memory once. A sum has the same order with any number of threads.

The machine's compiler makes a library of this file; `steps.py` calls it. */

#include "../vectors.h"

int omp_get_thread_num(void);  // OpenMP's, whose header is not everywhere

const char *const compiler = __VERSION__;

enum { QUERIES = 4 * HEIGHT };  // computed at a time: a smaller number wastes less on hidden keys

/* ---- C = A B, or C += A B, whose B and C have whole panels of columns */

/* Where they lie, and how far apart: rows and columns of A, panels of B, rows of C. */
typedef struct {
    const float *a;
    ptrdiff_t a_rows, a_columns;
    const float *b;
    ptrdiff_t b_panels;
    float *c;
    ptrdiff_t c_rows;
} Matrices;

INLINE void multiply_tile(const int height, Matrices of, ptrdiff_t steps, int adds) {
    Reals tile[HEIGHT][WIDTH] = {0};
    if (adds)
        UNROLLED for (int r = 0; r < height; r++)
            UNROLLED for (int v = 0; v < WIDTH; v++) tile[r][v] = *(Reals *)(of.c + r * of.c_rows + v * LANES);
#pragma GCC unroll 2
    for (; steps > 0; steps--, of.a += of.a_columns, of.b += PANEL) {
        Reals b[WIDTH];
        UNROLLED for (int v = 0; v < WIDTH; v++) b[v] = *(const Reals *)(of.b + v * LANES);
        UNROLLED for (int r = 0; r < height; r++)
            UNROLLED for (int v = 0; v < WIDTH; v++) tile[r][v] += of.a[r * of.a_rows] * b[v];
    }
    UNROLLED for (int r = 0; r < height; r++)
        UNROLLED for (int v = 0; v < WIDTH; v++) *(Reals *)(of.c + r * of.c_rows + v * LANES) = tile[r][v];
}

/* A (rows, steps), B (steps, columns), C (rows, columns), to which the product is added if `adds`. */
static void multiply(Matrices of, ptrdiff_t rows, ptrdiff_t steps, ptrdiff_t columns, int adds) {
    for (ptrdiff_t k = 0; k < steps; k += DEPTH)
        for (ptrdiff_t p = 0; p * PANEL < columns; p++) {
            Matrices at = of;
            at.a += k * of.a_columns;
            at.b += k * PANEL + p * of.b_panels;
            at.c += p * PANEL;
            const ptrdiff_t depth = least(DEPTH, steps - k);
            for (ptrdiff_t left = rows, tiles = (rows + HEIGHT - 1) / HEIGHT; tiles > 0; tiles--) {
                const ptrdiff_t height = (left + tiles - 1) / tiles;  // tiles of about one height
                switch (height) {                                     // which the compiler knows
                    case 1: multiply_tile(1, at, depth, adds || k); break;
                    case 2: multiply_tile(2, at, depth, adds || k); break;
                    case 3: multiply_tile(3, at, depth, adds || k); break;
                    case 4: multiply_tile(4, at, depth, adds || k); break;
                    case 5: multiply_tile(5, at, depth, adds || k); break;
                    case 6: multiply_tile(6, at, depth, adds || k);
                }
                left -= height;
                at.a += height * at.a_rows;
                at.c += height * at.c_rows;
            }
        }
}

/* A panel of the right factor: columns of a matrix (rows, columns) as [row][PANEL], filled up with zeros. */
INLINE void lay_out(const float *from, ptrdiff_t rows_apart, ptrdiff_t columns_apart, ptrdiff_t rows, ptrdiff_t columns,
                    float *to) {
    for (ptrdiff_t r = 0; r < rows; r++, from += rows_apart, to += PANEL)
        if (columns_apart == 1 && columns >= PANEL)
            UNROLLED for (int i = 0; i < PANEL; i += LANES) *(Reals *)(to + i) = *(const Reals *)(from + i);
        else
            for (int i = 0; i < PANEL; i++) to[i] = i < columns ? from[i * columns_apart] : 0;
}

/* Zeros, in whole panels of columns. */
INLINE void fill(float *to, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t apart) {
    for (ptrdiff_t r = 0; r < rows; r++)
        for (ptrdiff_t i = 0; i < filled(columns); i++) to[r * apart + i] = 0;
}

INLINE void copy(const float *from, ptrdiff_t number, float *to) {
    ptrdiff_t i = 0;
    for (; i + LANES <= number; i += LANES) *(Reals *)(to + i) = *(const Reals *)(from + i);
    for (; i < number; i++) to[i] = from[i];
}

INLINE float dot(const float *a, const float *b, ptrdiff_t number) {
    Reals sums = {0};
    float sum = 0;
    ptrdiff_t i = 0;
    for (; i + LANES <= number; i += LANES) sums += *(const Reals *)(a + i) * *(const Reals *)(b + i);
    for (; i < number; i++) sum += a[i] * b[i];
    for (i = 0; i < LANES; i++) sum += sums[i];
    return sum;
}

/* ---- the MLP: N positions, C numbers at each, W within; weights widen (W, C) and narrow (C, W) */

enum { POSITIONS = 8 * HEIGHT };  // computed at a time

typedef struct { ptrdiff_t N, C, W; } Widths;

/* Numbers of float32 for both weights in panels, and for the sums of each thread. */
ptrdiff_t mlp_room(Widths of, int threads) {
    return of.C * filled(of.W) + of.W * filled(of.C) + threads * POSITIONS * (filled(of.W) + filled(of.C));
}

/* Where they lie in it: panels of W and of C columns; and sums of one thread. */
typedef struct { float *to_w, *to_c, *wide, *narrow; } Room;
static Room of_thread(int thread, Widths of, float *room) {
    float *to_c = room + of.C * filled(of.W), *sums = to_c + of.W * filled(of.C);
    sums += thread * POSITIONS * (filled(of.W) + filled(of.C));
    return (Room){room, to_c, sums, sums + POSITIONS * filled(of.W)};
}

/* A thread's part of the panels of a right factor (rows, columns), whose numbers lie so far apart. */
static void weights(const float *from, ptrdiff_t rows_apart, ptrdiff_t columns_apart, ptrdiff_t rows, ptrdiff_t columns,
                    float *to) {
#pragma omp for
    for (ptrdiff_t c = 0; c < columns; c += PANEL)
        lay_out(from + c * columns_apart, rows_apart, columns_apart, rows, columns - c, to + c * rows);
}

/* One register's worth of numbers, or the `number` that there are, and zeros. */
INLINE Reals some_of(const float *from, ptrdiff_t number) {
    if (number >= LANES) return *(const Reals *)from;
    Reals some = {0};
    for (ptrdiff_t i = 0; i < number; i++) some[i] = from[i];
    return some;
}
INLINE void keep_some(Reals some, ptrdiff_t number, float *to) {
    if (number >= LANES) *(Reals *)to = some;
    else
        for (ptrdiff_t i = 0; i < number; i++) to[i] = some[i];
}

/* A bias, or zeros for NULL, in each row: what a product is added to. */
static void begin(const float *bias, ptrdiff_t rows, ptrdiff_t columns, float *to) {
    for (ptrdiff_t r = 0; r < rows; r++, to += filled(columns))
        for (ptrdiff_t i = 0; i < columns; i += LANES)
            *(Reals *)(to + i) = bias ? some_of(bias + i, columns - i) : (Reals){0};
}

/* y (N, C) of x (N, C), the weights and their biases, which may be NULL. Kept for the gradients: what GELU gives, wide
(N, W), and its slope there. With s = sigmoid(2 u), it is x s, and its slope s + x s (1 - s) (2 u)'. */
void mlp(const float *x, const float *widen, const float *widen_bias, const float *narrow, const float *narrow_bias,
         float *wide, float *slopes, float *y, Widths of, int threads, float *rooms) {
    const ptrdiff_t C = of.C, W = of.W;
#pragma omp parallel num_threads(threads)
    {
        const Room room = of_thread(omp_get_thread_num(), of, rooms);
        weights(widen, 1, C, C, W, room.to_w);
        weights(narrow, 1, W, W, C, room.to_c);
#pragma omp for schedule(dynamic)
        for (ptrdiff_t n = 0; n < of.N; n += POSITIONS) {
            const ptrdiff_t some = least(POSITIONS, of.N - n);
            begin(widen_bias, some, W, room.wide);
            multiply((Matrices){x + n * C, C, 1, room.to_w, C * PANEL, room.wide, filled(W)}, some, C, W, 1);
            for (ptrdiff_t r = 0; r < some; r++)
                for (ptrdiff_t i = 0; i < W; i += LANES) {
                    const Reals at = *(Reals *)(room.wide + r * filled(W) + i), e = gelu_power(at), s = 1 / (1 + e);
                    const Reals slope = s + at * s * (e * s) * (FIRST + 3 * THIRD * at * at);  // e s = 1 - s
                    keep_some(at * s, W - i, wide + (n + r) * W + i);
                    keep_some(slope, W - i, slopes + (n + r) * W + i);
                }
            begin(narrow_bias, some, C, room.narrow);
            multiply((Matrices){wide + n * W, W, 1, room.to_c, W * PANEL, room.narrow, filled(C)}, some, W, C, 1);
            for (ptrdiff_t r = 0; r < some; r++) copy(room.narrow + r * filled(C), C, y + (n + r) * C);
        }
    }
}

/* From the gradient of y, dy (N, C), those of what was given to GELU, d_wide (N, W), and of x, dx (N, C), or NULL. */
void mlp_back(const float *dy, const float *widen, const float *narrow, const float *slopes, float *d_wide, float *dx,
              Widths of, int threads, float *rooms) {
    const ptrdiff_t C = of.C, W = of.W;
#pragma omp parallel num_threads(threads)
    {
        const Room room = of_thread(omp_get_thread_num(), of, rooms);
        weights(narrow, W, 1, C, W, room.to_w);
        weights(widen, C, 1, W, C, room.to_c);
#pragma omp for schedule(dynamic)
        for (ptrdiff_t n = 0; n < of.N; n += POSITIONS) {
            const ptrdiff_t some = least(POSITIONS, of.N - n);
            multiply((Matrices){dy + n * C, C, 1, room.to_w, C * PANEL, room.wide, filled(W)}, some, C, W, 0);
            for (ptrdiff_t r = 0; r < some; r++)
                for (ptrdiff_t i = 0; i < W; i += LANES) {
                    const ptrdiff_t at = (n + r) * W + i;
                    keep_some(*(Reals *)(room.wide + r * filled(W) + i) * some_of(slopes + at, W - i), W - i,
                              d_wide + at);
                }
            if (!dx) continue;
            multiply((Matrices){d_wide + n * W, W, 1, room.to_c, W * PANEL, room.narrow, filled(C)}, some, W, C, 0);
            for (ptrdiff_t r = 0; r < some; r++) copy(room.narrow + r * filled(C), C, dx + (n + r) * C);
        }
    }
}

/* ---- causal attention: B rows of H heads with T positions and D numbers at each */

typedef struct { ptrdiff_t B, H, T, D; } Sizes;

/* Where the numbers of a head lie, (T, D), and how far apart two rows of the batch, heads and positions are. */
typedef struct { ptrdiff_t rows, heads, positions; } Strides;
INLINE ptrdiff_t of_head(Strides by, ptrdiff_t number, Sizes of) {
    return number / of.H * by.rows + number % of.H * by.heads;
}

/* One head (T, D) in panels of its numbers, [panel][T][PANEL]; and turned, in panels of its positions. */
static void by_numbers(const float *from, Strides by, Sizes of, float *to) {
    for (ptrdiff_t d = 0; d < of.D; d += PANEL) lay_out(from + d, by.positions, 1, of.T, of.D - d, to + d * of.T);
}
static void by_positions(const float *from, Strides by, Sizes of, float *to) {
    for (ptrdiff_t t = 0; t < of.T; t += PANEL)
        lay_out(from + t * by.positions, 1, by.positions, of.D, of.T - t, to + t * of.D);
}

/* Dropout of the weights: its mask (B, H, T, T) holds 1 or 0, or is NULL; what stays is multiplied by `more`. */
typedef struct { const uint8_t *stays; float more; } Dropout;

/* What the weights of a query are multiplied by, from its key number `first`. */
INLINE Reals kept(Dropout by, ptrdiff_t query, ptrdiff_t first, ptrdiff_t T) {
    typedef uint8_t Bytes __attribute__((vector_size(LANES), aligned(1)));
    if (!by.stays) return (Reals){0} + 1;
    const uint8_t *stays = by.stays + query * T;
    Bytes some = {0};
    if (first + LANES <= T) some = *(const Bytes *)(stays + first);
    else
        for (ptrdiff_t i = first; i < T; i++) some[i - first] = stays[i];
    return __builtin_convertvector(__builtin_convertvector(some, Wholes), Reals) * by.more;
}

INLINE ptrdiff_t keys_apart(ptrdiff_t T) { return filled(T) + PANEL; }  // no power of two: it would share cache lines

/* Numbers of float32 that each thread needs as room, forward and backward. */
ptrdiff_t room(ptrdiff_t T, ptrdiff_t D, int back) {
    const ptrdiff_t turned = filled(T) * D, wide = T * filled(D), block = QUERIES * filled(D);
    return (back ? 2 * turned + 5 * wide : turned + wide) + QUERIES * (back + 1) * keys_apart(T) + block;
}

/* y (B, T, H, D) of q, k and v, which lie alike, and the `softmaxes` (B, H, T) of their scores, q k' times `scale`. */
void attention(const float *q, const float *k, const float *v, Strides by, Dropout dropout, float scale, float *y,
               Softmax *softmaxes, Sizes of, int threads, float *rooms) {
    const ptrdiff_t T = of.T, D = of.D, wide = filled(D), apart = keys_apart(T);
    const Strides by_y = {T * of.H * D, D, of.H * D};
    const float power = scale * LOG2_E;
#pragma omp parallel for num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        float *keys = rooms + thread * room(T, D, 0), *values = keys + filled(T) * D;
        float *scores = values + T * wide, *sums = scores + QUERIES * apart;
        for (ptrdiff_t n = of.B * of.H * thread / threads; n < of.B * of.H * (thread + 1) / threads; n++) {
            const ptrdiff_t at = of_head(by, n, of);
            by_positions(k + at, by, of, keys);
            by_numbers(v + at, by, of, values);
            for (ptrdiff_t first = 0; first < T; first += QUERIES) {
                const ptrdiff_t some = least(QUERIES, T - first), number = first + some;
                const float *queries = q + at + first * by.positions;
                multiply((Matrices){queries, by.positions, 1, keys, D * PANEL, scores, apart}, some, D, number, 0);
                for (ptrdiff_t r = 0, row = n * T + first; r < some; r++, row++) {
                    softmaxes[row] = weigh(scores + r * apart, first + r + 1, filled(number), power);
                    for (ptrdiff_t s = 0; dropout.stays && s < number; s += LANES)
                        *(Reals *)(scores + r * apart + s) *= kept(dropout, row, s, T);
                }
                multiply((Matrices){scores, apart, 1, values, T * PANEL, sums, wide}, some, number, D, 0);
                for (ptrdiff_t r = 0; r < some; r++)
                    copy(sums + r * wide, D, y + of_head(by_y, n, of) + (first + r) * by_y.positions);
            }
        }
    }
}

/* The gradients of q, k and v, which lie `by_d` alike, from that of y, dy (B, T, H, D), and from what `attention` gave.

With S = scores, P = softmax(S) and M = what dropout multiplies by: dV = (P M)' dY, dP = (dY V') M,
dS = P (dP - sum(dY Y)), dQ = dS K, dK = dS' Q. */
void attention_back(const float *q, const float *k, const float *v, Strides by, Dropout dropout, float scale,
                    const float *y, const Softmax *softmaxes, const float *dy, float *dq, float *dk, float *dv,
                    Strides by_d, Sizes of, int threads, float *rooms) {
    const ptrdiff_t T = of.T, D = of.D, wide = filled(D), apart = keys_apart(T);
    const Strides by_y = {T * of.H * D, D, of.H * D};
    const float power = scale * LOG2_E;
#pragma omp parallel for num_threads(threads)
    for (int thread = 0; thread < threads; thread++) {
        float *k_turned = rooms + thread * room(T, D, 1), *v_turned = k_turned + filled(T) * D;
        float *patterns = v_turned + filled(T) * D, *slopes = patterns + QUERIES * apart;
        float *queries = slopes + QUERIES * apart, *keys = queries + T * wide, *dys = keys + T * wide;
        float *dks = dys + T * wide, *dvs = dks + T * wide, *dqs = dvs + T * wide;
        for (ptrdiff_t n = of.B * of.H * thread / threads; n < of.B * of.H * (thread + 1) / threads; n++) {
            const ptrdiff_t at = of_head(by, n, of), at_y = of_head(by_y, n, of), at_d = of_head(by_d, n, of);
            by_positions(k + at, by, of, k_turned);
            by_positions(v + at, by, of, v_turned);
            by_numbers(q + at, by, of, queries);
            by_numbers(k + at, by, of, keys);
            by_numbers(dy + at_y, by_y, of, dys);
            fill(dks, T, D, wide);
            fill(dvs, T, D, wide);
            for (ptrdiff_t first = 0; first < T; first += QUERIES) {
                const ptrdiff_t some = least(QUERIES, T - first), number = first + some;
                const ptrdiff_t from = at + first * by.positions, from_y = at_y + first * by_y.positions;
                multiply((Matrices){q + from, by.positions, 1, k_turned, D * PANEL, patterns, apart}, some, D,
                         number, 0);
                multiply((Matrices){dy + from_y, by_y.positions, 1, v_turned, D * PANEL, slopes, apart}, some, D,
                         number, 0);
                for (ptrdiff_t r = 0, row = n * T + first; r < some; r++, row++) {
                    const float mean = dot(y + from_y + r * by_y.positions, dy + from_y + r * by_y.positions, D);
                    const Softmax softmax = softmaxes[row];
                    for (ptrdiff_t s = 0; s < filled(number); s += LANES) {
                        Reals *p = (Reals *)(patterns + r * apart + s), *d = (Reals *)(slopes + r * apart + s);
                        const Reals weights = power_of_2((*p - softmax.high) * power) * softmax.share;
                        const Reals pattern = visible(s, first + r + 1, weights, 0), mask = kept(dropout, row, s, T);
                        *p = pattern * mask;
                        *d = pattern * (*d * mask - mean) * scale;
                    }
                }
                multiply((Matrices){slopes, apart, 1, keys, T * PANEL, dqs, wide}, some, number, D, 0);
                multiply((Matrices){slopes, 1, apart, queries + first * PANEL, T * PANEL, dks, wide}, number, some, D,
                         1);
                multiply((Matrices){patterns, 1, apart, dys + first * PANEL, T * PANEL, dvs, wide}, number, some, D,
                         1);
                for (ptrdiff_t r = 0; r < some; r++)
                    copy(dqs + r * wide, D, dq + at_d + (first + r) * by_d.positions);
            }
            for (ptrdiff_t t = 0; t < T; t++) {
                copy(dks + t * wide, D, dk + at_d + t * by_d.positions);
                copy(dvs + t * wide, D, dv + at_d + t * by_d.positions);
            }
        }
    }
}
