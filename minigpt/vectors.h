/* Numbers side by side in the registers of this processor, the tiles of a product in them, e^x and softmax. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define WITH_512_BITS
enum { LANES = 16 };  // numbers of 4 bytes in a register
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

// Sixteen registers hold HEIGHT x WIDTH of sums, WIDTH of weights, and what a row brings, in all lanes of one.
enum { HEIGHT = 6, WIDTH = 2, PANEL = WIDTH * LANES };
enum { DEPTH = 192 };  // steps after which sums leave the registers: of a panel, what the nearest cache holds

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 8")
typedef float Reals __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Wholes __attribute__((vector_size(4 * LANES), aligned(4)));

INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
INLINE ptrdiff_t filled(ptrdiff_t n) { return (n + PANEL - 1) / PANEL * PANEL; }

/* ---- e^x */

INLINE Reals either(Wholes which, Reals a, Reals b) { return (Reals)((which & (Wholes)a) | (~which & (Wholes)b)); }

/* 2^x within a few units of its last place: 0 far below 0, finite far above it, and NaN of NaN. */
INLINE Reals power_of_2(Reals x) {
    const float nearest = 3 << 22;  // a sum with this is rounded to a whole number, its last bits
    const Wholes low = x < -126, high = x > 127;
    x = either(high, (Reals){0} + 127, either(low, (Reals){0} - 126, x));
    const Reals whole = x + nearest, part = (x - (whole - nearest)) * 0.693147180559945f;  // |part| <= log(2) / 2
    Reals sum = 1 / 720.f + part * (1 / 5040.f);  // Taylor's series of e^part
    sum = 1 / 120.f + part * sum;
    sum = 1 / 24.f + part * sum;
    sum = 1 / 6.f + part * sum;
    sum = .5f + part * sum;
    sum = 1 + part * sum;
    sum = 1 + part * sum;
    const Reals power = (Reals)(((Wholes)whole - (Wholes)((Reals){0} + nearest) + 127) << 23);
    return (Reals)(~low & (Wholes)(sum * power));
}

static const float LOG2_E = 1.44269504088896f;

/* tanh-GELU is x sigmoid(2 u), where 2 u = sqrt(8 / pi) (x + 0.044715 x^3) = FIRST x + THIRD x^3. This is e^(-2 u). */
static const float FIRST = 1.59576912160573f, THIRD = 0.0713548162726f;
INLINE Reals gelu_power(Reals x) { return power_of_2(-LOG2_E * x * (FIRST + THIRD * x * x)); }

/* ---- softmax */

/* The first `number` of some values, of which these begin with number `first`; the others are replaced. */
INLINE Reals visible(ptrdiff_t first, ptrdiff_t number, Reals values, float otherwise) {
    Wholes at;
    UNROLLED for (int i = 0; i < LANES; i++) at[i] = i;
    return either(at < (int32_t)least(LANES, number - first), values, (Reals){0} + otherwise);
}

/* What makes weights of a query's scores: 2^((score - high) * power) * share. */
typedef struct { float high, share; } Softmax;

/* In place, of `number` scores the weights, and zeros behind them, up to `all`. */
static Softmax weigh(float *scores, ptrdiff_t number, ptrdiff_t all, float power) {
    Reals highs = (Reals){0} - INFINITY, sums = {0};
    for (ptrdiff_t s = 0; s < number; s += LANES) {
        const Reals some = visible(s, number, *(Reals *)(scores + s), -INFINITY);
        highs = either(some > highs, some, highs);
    }
    float high = highs[0], sum = 0;
    for (int i = 1; i < LANES; i++) high = highs[i] > high ? highs[i] : high;
    for (ptrdiff_t s = 0; s < all; s += LANES) {
        const Reals some = s < number ? power_of_2((*(Reals *)(scores + s) - high) * power) : (Reals){0};
        sums += *(Reals *)(scores + s) = visible(s, number, some, 0);
    }
    for (int i = 0; i < LANES; i++) sum += sums[i];
    for (ptrdiff_t s = 0; s < number; s += LANES) *(Reals *)(scores + s) *= 1 / sum;
    return (Softmax){high, 1 / sum};
}
