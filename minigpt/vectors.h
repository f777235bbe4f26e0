/* Numbers side by side in the registers of this processor, and the tiles of a product in them. */

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
