/* Products of packed INT4 and INT8 matrices with float rows; models/quantize.py describes the layout and is the
 * specification. Rows of x are rounded to bytes, group by group; sums are whole numbers until a group ends.
 *
 * A row of y depends on its own row of x alone, bit for bit: drafting checks several rows at once and relies on it.
 */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP = 32, ROWS = 8 };

typedef struct {
    int bits;
    long rows, columns;         /* as the user sees them; the blocks are filled up */
    const uint8_t *blocks;      /* [rows / 8][groups][lanes][8][4] */
    const uint16_t *scales;     /* float16 [rows / 8][groups][8] */
    const uint16_t *minimums;   /* the same, or NULL */
} Matrix;

/* A row of x: bytes [groups][32], what one of them stands for, and the sum of the floats, [groups] each. */
typedef struct {
    int8_t *bytes;
    float *scales, *sums;
} Row;

/* The dot products of one block's eight rows with one row of x. */
typedef void (*BlockProduct)(const Matrix *matrix, long block, long groups, const Row *x, float out[ROWS]);

static void quantize_row(const float *x, long columns, long groups, Row *row) {
    for (long group = 0; group < groups; group++) {
        const float *from = x + group * GROUP;
        long count = columns - group * GROUP < GROUP ? columns - group * GROUP : GROUP;
        float largest = 0, sum = 0;
        for (long i = 0; i < count; i++) {
            float size = fabsf(from[i]);
            if (size > largest) largest = size;
            sum += from[i];
        }
        float inverse = largest > 0 ? 127 / largest : 0;
        int8_t *to = row->bytes + group * GROUP;
        for (long i = 0; i < count; i++) to[i] = (int8_t)lrintf(from[i] * inverse);
        memset(to + count, 0, (size_t)(GROUP - count));
        row->scales[group] = largest / 127;
        row->sums[group] = sum;
    }
}

static float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023, bits;
    float value;
    if (exponent == 0) {  /* zero, or too small for the usual form */
        value = (float)fraction * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* -- Portable -- */

static void product_portable(const Matrix *matrix, long block, long groups, const Row *x, float out[ROWS]) {
    int lanes = matrix->bits == 8 ? 8 : 4;
    for (int row = 0; row < ROWS; row++) out[row] = 0;
    for (long group = 0; group < groups; group++) {
        long at = block * groups + group;
        const uint8_t *weights = matrix->blocks + at * lanes * ROWS * 4;
        const int8_t *bytes = x->bytes + group * GROUP;
        for (int row = 0; row < ROWS; row++) {
            int32_t sum = 0;
            for (int lane = 0; lane < lanes; lane++) {
                const uint8_t *four = weights + (lane * ROWS + row) * 4;
                for (int i = 0; i < 4; i++) {
                    if (matrix->bits == 8) sum += (int8_t)four[i] * bytes[lane * 4 + i];
                    else sum += (four[i] & 15) * bytes[lane * 4 + i] + (four[i] >> 4) * bytes[16 + lane * 4 + i];
                }
            }
            out[row] += (float)sum * (half_to_float(matrix->scales[at * ROWS + row]) * x->scales[group]);
            if (matrix->minimums) out[row] += half_to_float(matrix->minimums[at * ROWS + row]) * x->sums[group];
        }
    }
}

/* -- AVX2 -- */

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))

AVX2 static __m256 load_halves(const uint16_t *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

AVX2 static __m256i four_bytes(const int8_t *from) {
    int32_t four;
    memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
}

AVX2 static void product4_avx2(const Matrix *matrix, long block, long groups, const Row *x, float out[ROWS]) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    __m256 total = _mm256_setzero_ps();
    for (long group = 0; group < groups; group++) {
        long at = block * groups + group;
        const __m256i *weights = (const __m256i *)(matrix->blocks + at * 128);
        const int8_t *bytes = x->bytes + group * GROUP;
        __m256i sums = _mm256_setzero_si256();  /* 15 x 127 x 2 x 8 stays inside 16 bits */
        for (int lane = 0; lane < 4; lane++) {
            __m256i pair = _mm256_loadu_si256(weights + lane);
            __m256i first = _mm256_and_si256(pair, low), second = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(first, four_bytes(bytes + lane * 4)));
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(second, four_bytes(bytes + 16 + lane * 4)));
        }
        __m256 whole = _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, ones));
        __m256 scale = _mm256_mul_ps(load_halves(matrix->scales + at * ROWS), _mm256_set1_ps(x->scales[group]));
        total = _mm256_fmadd_ps(whole, scale, total);
        if (matrix->minimums)
            total = _mm256_fmadd_ps(load_halves(matrix->minimums + at * ROWS), _mm256_set1_ps(x->sums[group]), total);
    }
    _mm256_storeu_ps(out, total);
}

AVX2 static void product8_avx2(const Matrix *matrix, long block, long groups, const Row *x, float out[ROWS]) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256 total = _mm256_setzero_ps();
    for (long group = 0; group < groups; group++) {
        long at = block * groups + group;
        const __m256i *weights = (const __m256i *)(matrix->blocks + at * 256);
        const int8_t *bytes = x->bytes + group * GROUP;
        __m256i sums = _mm256_setzero_si256();
        for (int lane = 0; lane < 8; lane++) {
            __m256i weight = _mm256_loadu_si256(weights + lane);
            __m256i signed_bytes = _mm256_sign_epi8(four_bytes(bytes + lane * 4), weight);
            __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weight), signed_bytes);
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
        }
        __m256 scale = _mm256_mul_ps(load_halves(matrix->scales + at * ROWS), _mm256_set1_ps(x->scales[group]));
        total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), scale, total);
    }
    _mm256_storeu_ps(out, total);
}
#endif

static BlockProduct choose(int bits, int portable) {
#if defined(__x86_64__)
    if (!portable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        return bits == 4 ? product4_avx2 : product8_avx2;
#endif
    (void)bits, (void)portable;
    return product_portable;
}

/* -- Threads: they are started once, look for work a short while, then sleep. -- */

typedef struct {
    const Matrix *matrix;
    BlockProduct product;
    long groups, blocks, count;     /* count rows of x */
    const Row *x;
    const float *bias;
    float *y;
    atomic_long next;               /* the next block that nobody has taken */
} Job;

struct Pool {
    pthread_mutex_t mutex;
    pthread_cond_t woken, finished;
    pthread_mutex_t one_at_a_time;
    Job *job;
    long generation;
    int helpers, busy, closing;
    pthread_t threads[64];
};

enum { TAKEN_AT_ONCE = 4 };

static void work(Job *job) {
    float out[ROWS];
    for (;;) {
        long start = atomic_fetch_add(&job->next, TAKEN_AT_ONCE);
        if (start >= job->blocks) return;
        long end = start + TAKEN_AT_ONCE < job->blocks ? start + TAKEN_AT_ONCE : job->blocks;
        for (long block = start; block < end; block++) {
            long first = block * ROWS, left = job->matrix->rows - first, rows = left < ROWS ? left : ROWS;
            for (long i = 0; i < job->count; i++) {
                job->product(job->matrix, block, job->groups, job->x + i, out);
                float *to = job->y + i * job->matrix->rows + first;
                for (long row = 0; row < rows; row++) to[row] = out[row] + (job->bias ? job->bias[first + row] : 0);
            }
        }
    }
}

static void *help(void *argument) {
    struct Pool *pool = argument;
    long seen = 0;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        while (pool->generation == seen && !pool->closing) pthread_cond_wait(&pool->woken, &pool->mutex);
        if (pool->closing) break;
        seen = pool->generation;
        Job *job = pool->job;
        if (!job) continue;
        pool->busy++;
        pthread_mutex_unlock(&pool->mutex);
        work(job);
        pthread_mutex_lock(&pool->mutex);
        if (--pool->busy == 0) pthread_cond_signal(&pool->finished);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

struct Pool *quatrain_open(int threads) {
    struct Pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_mutex_init(&pool->one_at_a_time, NULL);
    pthread_cond_init(&pool->woken, NULL);
    pthread_cond_init(&pool->finished, NULL);
    for (int i = 1; i < threads && i < 64; i++) {
        if (pthread_create(&pool->threads[pool->helpers], NULL, help, pool) != 0) break;
        pool->helpers++;
    }
    return pool;
}

static void run(struct Pool *pool, Job *job) {
    pthread_mutex_lock(&pool->one_at_a_time);
    pthread_mutex_lock(&pool->mutex);
    pool->job = job;
    pool->generation++;
    pthread_cond_broadcast(&pool->woken);
    pthread_mutex_unlock(&pool->mutex);
    work(job);
    pthread_mutex_lock(&pool->mutex);
    pool->job = NULL;  /* a thread that wakes late finds nothing to do */
    while (pool->busy) pthread_cond_wait(&pool->finished, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
    pthread_mutex_unlock(&pool->one_at_a_time);
}

/* y [count][rows] = x [count][columns] times the matrix's rows, plus the bias if there is one. Returns 0, or -1 when
 * memory ran out. */
int quatrain_multiply(struct Pool *pool, int portable, int bits, long rows, long columns, const uint8_t *blocks,
                      const uint16_t *scales, const uint16_t *minimums, const float *x, long count, const float *bias,
                      float *y) {
    Matrix matrix = {bits, rows, columns, blocks, scales, minimums};
    long groups = (columns + GROUP - 1) / GROUP;
    size_t each = (size_t)groups * (GROUP + 2 * sizeof(float));
    char *memory = malloc((size_t)count * (each + sizeof(Row)));
    if (!memory) return -1;
    Row *list = (Row *)memory;
    char *next = memory + (size_t)count * sizeof(Row);
    for (long i = 0; i < count; i++, next += each) {
        list[i].scales = (float *)next;
        list[i].sums = list[i].scales + groups;
        list[i].bytes = (int8_t *)(list[i].sums + groups);
        quantize_row(x + i * columns, columns, groups, &list[i]);
    }
    Job job = {&matrix, choose(bits, portable), groups, (rows + ROWS - 1) / ROWS, count, list, bias, y, 0};
    run(pool, &job);
    free(memory);
    return 0;
}
