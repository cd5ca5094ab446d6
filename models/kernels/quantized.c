/* Products of packed INT4, packed INT8 and FP16 matrices with float rows, the packing itself, and whole steps of a model
 * from token ids to logits. models/quantize.py describes the layout and is the specification. For the packed ones rows
 * of x are rounded to bytes, group by group; sums are whole numbers until a group ends.
 *
 * A row of y depends on its own row of x alone, bit for bit: drafting checks several rows at once and relies on it.
 */

#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#define _DARWIN_C_SOURCE        /* sysctlbyname */

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
/* Bodies that are compiled once for each instruction set, with the counts that they are given as constants. */
#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512_VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))
/* The tests define TRY_AVX_VNNI: processors that know only the 512-bit form have the same instruction otherwise coded. */
#if defined(TRY_AVX_VNNI)
#define AVX_VNNI AVX512_VNNI
#define add_dots _mm256_dpbusd_epi32
#elif __has_include(<avxvnniintrin.h>) /* older compilers don't know it */
#define AVX_VNNI __attribute__((target("avx2,fma,f16c,avxvnni")))
#define add_dots _mm256_dpbusd_avx_epi32
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__clang__)
#define NEON_DOTPROD __attribute__((target("dotprod")))
#else
#define NEON_DOTPROD __attribute__((target("+dotprod")))
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif

enum { GROUP = 32, ROWS = 8, STRIP = 2 * ROWS, TILE = 16, LINE = 64 };

/* -- Half precision -- */

/* Without a branch, so that compilers make vectors of it. */
static inline float half_to_float(uint16_t half) {
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023, tiny, bits;
    float value = (float)(int32_t)fraction * 0x1p-24f; /* zero, or too small for the usual form */
    memcpy(&tiny, &value, sizeof tiny);
    bits = (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    bits = (exponent == 0 ? tiny : bits) | (uint32_t)(half & 0x8000) << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The nearest half, ties to even; what is too large becomes the largest one, 65504. */
static inline uint16_t float_to_half(float value) {
    uint32_t bits, sign;
    memcpy(&bits, &value, sizeof bits);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return (uint16_t)(sign | 0x7e00); /* not a number */
    if (bits >= 0x477fe000) return (uint16_t)(sign | 0x7bff);
    if (bits < 0x38800000) { /* below 2^-14 halves are 2^-24 apart, and so are the floats from 0.5 to 1 */
        float shifted = fabsf(value) + 0.5f;
        memcpy(&bits, &shifted, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (bits - 0x38000000) >> 13);
}

/* -- Threads: they start with the first job, look for the next one a short while, then sleep. -- */

enum { MOST_HELPERS = 63, SPIN_NANOSECONDS = 50000, SERVE_NANOSECONDS = 2000000, ALONE_BATCHES = 32 };

/* Does the items first .. end - 1 of a job. */
typedef void (*Task)(const void *context, int64_t first, int64_t end);

typedef struct {
    Task task;
    const void *context;
    int64_t items, batch;
    _Atomic int64_t next; /* the first item that nobody has taken */
} Job;

/* Work that many short phases share, handed over without waking anyone: helpers watch for the next phase. */
typedef struct {
    _Atomic uint64_t ticket; /* the phase's number, and in the low half its first item that nobody took */
    _Atomic(Task) task;
    _Atomic(const void *) context;
    _Atomic int64_t items, least;
    char apart[64]; /* who counts what is done doesn't disturb those who watch the ticket */
    _Atomic int64_t done;
    _Atomic int open, left; /* whether there may be more phases; whether a helper gave up watching for them */
    char also_apart[64];
} Crew;

typedef struct {
    Crew crew;
    pthread_mutex_t owner; /* held by the caller whose job the helpers do */
    pthread_mutex_t mutex; /* guards what follows; the atomics may be watched without it */
    pthread_cond_t woken, finished;
    Job *job;
    _Atomic int jobs, busy; /* how many there were; helpers at work on the present one */
    int wanted, helpers;
} Pool;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Watches a number until it is no longer what it was, or for a short while: sleeping and waking takes longer than the
 * gap between two products of a small model. Other programs get the processor meanwhile if they want it. */
static void watch(_Atomic int *number, int was) {
    int64_t end = now() + SPIN_NANOSECONDS;
    do {
        for (int i = 0; i < 32; i++) {
            if (atomic_load(number) != was) return;
            pause_briefly();
        }
        sched_yield();
    } while (now() < end);
}

static void work(Job *job) {
    for (;;) {
        int64_t first = atomic_fetch_add(&job->next, job->batch);
        if (first >= job->items) return;
        int64_t end = first + job->batch;
        job->task(job->context, first, end < job->items ? end : job->items);
    }
}

/* Does a share of the present phase, if anything is left of it: large ones first, then smaller, so that all end together.
 * The compare-and-swap succeeds only while nothing of what was read before has changed. */
static int take_share(Crew *crew, int threads) {
    uint64_t ticket = atomic_load(&crew->ticket);
    int64_t first = (uint32_t)ticket, left = atomic_load(&crew->items) - first;
    if (left <= 0) return 0;
    Task task = atomic_load(&crew->task);
    const void *context = atomic_load(&crew->context);
    int64_t share = left / (2 * threads), least = atomic_load(&crew->least);
    share = share > least ? share : least;
    share = share < left ? share : left;
    if (atomic_compare_exchange_strong(&crew->ticket, &ticket, ticket + (uint64_t)share)) {
        task(context, first, first + share);
        atomic_fetch_add(&crew->done, share);
    }
    return 1;
}

/* What a helper does while a crew is at work. It gives up where the next phase is long in coming. */
static void serve(Crew *crew, int threads) {
    int64_t end = 0;
    for (int idle = 0; atomic_load(&crew->open); idle++) {
        if (take_share(crew, threads)) {
            idle = 0;
            continue;
        }
        pause_briefly();
        if (idle % 64) continue;
        if (idle == 0) end = now() + SERVE_NANOSECONDS;
        else sched_yield();
        if (now() > end) {
            atomic_store(&crew->left, 1);
            return;
        }
    }
}

static void *help(void *argument) {
    Pool *pool = argument;
    int seen = 0;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        if (pool->jobs == seen) {
            pthread_mutex_unlock(&pool->mutex);
            watch(&pool->jobs, seen);
            pthread_mutex_lock(&pool->mutex);
        }
        while (pool->jobs == seen) pthread_cond_wait(&pool->woken, &pool->mutex);
        seen = pool->jobs;
        Job *job = pool->job; /* NULL if it was done before this thread woke, or is a crew's */
        pool->busy += job != NULL;
        pthread_mutex_unlock(&pool->mutex);
        if (job) work(job);
        else serve(&pool->crew, pool->wanted + 1);
        pthread_mutex_lock(&pool->mutex);
        if (job && --pool->busy == 0) pthread_cond_signal(&pool->finished);
    }
    return NULL;
}

/* Where no thread can be started the caller does all the work. Called with the mutex held. */
static void start_helpers(Pool *pool) {
    while (pool->helpers < pool->wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, pool) != 0) {
            pool->wanted = pool->helpers;
            return;
        }
        pthread_detach(thread);
        pool->helpers++;
    }
}

/* Wakes the helpers for a job, or for the crew if there is none. */
static void call(Pool *pool, Job *job) {
    pthread_mutex_lock(&pool->mutex);
    start_helpers(pool);
    pool->job = job;
    pool->jobs = (pool->jobs + 1) & 0x3fffffff;
    pthread_cond_broadcast(&pool->woken);
    pthread_mutex_unlock(&pool->mutex);
}

static void share(Pool *pool, Job *job) {
    call(pool, job);
    work(job);
    pthread_mutex_lock(&pool->mutex);
    pool->job = NULL; /* who wakes late finds nothing to do */
    while (pool->busy) {
        int busy = pool->busy;
        pthread_mutex_unlock(&pool->mutex);
        watch(&pool->busy, busy);
        pthread_mutex_lock(&pool->mutex);
        if (pool->busy == busy) pthread_cond_wait(&pool->finished, &pool->mutex);
    }
    pthread_mutex_unlock(&pool->mutex);
}

/* Does a job with the helpers, or alone where it is small or they do another caller's. A job of so few batches is over
 * in a tenth of a millisecond; where another program has a helper's processor, waiting for it takes fifty times that. */
static void run(Pool *pool, Task task, const void *context, int64_t items, int64_t batch) {
    Job job = {task, context, items, batch, 0};
    if (pool && items > ALONE_BATCHES * batch && pthread_mutex_trylock(&pool->owner) == 0) {
        share(pool, &job);
        pthread_mutex_unlock(&pool->owner);
    } else {
        work(&job);
    }
}

/* Waits for what helpers have taken of a phase. One of them may have lost its processor to another program: after a
 * while this thread sleeps, so that it isn't the one in the way. */
static void await_helpers(Crew *crew, int64_t items) {
    const struct timespec nap = {0, SPIN_NANOSECONDS};
    int64_t end = 0;
    for (int spins = 0; atomic_load(&crew->done) < items; spins++) {
        pause_briefly();
        if (spins % 64) continue;
        if (spins == 0) end = now() + SPIN_NANOSECONDS;
        else if (now() > end) nanosleep(&nap, NULL);
        else sched_yield();
    }
}

/* Does one phase with the helpers that are there. `least` items are worth handing over. */
static void share_phase(Pool *pool, Task task, const void *context, int64_t items, int64_t least) {
    Crew *crew = &pool->crew;
    uint64_t phase = (atomic_load(&crew->ticket) >> 32) + 1;
    if (atomic_exchange(&crew->left, 0)) call(pool, NULL);
    atomic_store(&crew->ticket, phase << 32 | UINT32_MAX); /* nothing to take while what is to be done changes */
    atomic_store(&crew->task, task);
    atomic_store(&crew->context, context);
    atomic_store(&crew->items, items);
    atomic_store(&crew->least, least);
    atomic_store(&crew->done, 0);
    atomic_store(&crew->ticket, phase << 32);
    while (take_share(crew, pool->wanted + 1)) {}
    await_helpers(crew, items);
}

/* Whether the helpers are this caller's until close_crew: nobody else has them, and there are some. */
static int open_crew(Pool *pool) {
    if (!pool || pool->wanted == 0 || pthread_mutex_trylock(&pool->owner) != 0) return 0;
    atomic_store(&pool->crew.open, 1);
    atomic_store(&pool->crew.left, 0);
    call(pool, NULL);
    return 1;
}

static void close_crew(Pool *pool) {
    atomic_store(&pool->crew.open, 0);
    pthread_mutex_unlock(&pool->owner);
}

/* A pool lives as long as the process. NULL, when memory ran out, is a pool without helpers. */
EXPORT Pool *quatrain_open(int threads) {
    Pool *pool = calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pthread_mutex_init(&pool->owner, NULL);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->woken, NULL);
    pthread_cond_init(&pool->finished, NULL);
    pool->wanted = threads - 1 < MOST_HELPERS ? threads - 1 : MOST_HELPERS;
    return pool;
}

/* -- Levels: the instruction sets that products are compiled for -- */

enum { PORTABLE_LEVEL, AVX2_LEVEL, AVX_VNNI_LEVEL, AVX512_VNNI_LEVEL, NEON_DOTPROD_LEVEL, ALL_LEVELS };

#if defined(__x86_64__)

/* Not __builtin_cpu_supports, which zig has no library for. */
static int x86_levels(void) {
    enum { WIDE = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29 }; /* FMA, OSXSAVE, AVX, F16C */
    const unsigned wider = 1u << 16 | 1u << 30 | 1u << 31; /* AVX-512 F, BW and VL */
    unsigned a, b, c, d, more, last, saved, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & WIDE) != WIDE) return 0;
    if (!__get_cpuid_count(7, 0, &last, &more, &c, &d) || !(more & 1u << 5)) return 0;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0)); /* which registers the system saves */
    if ((saved & 0x06) != 0x06) return 0;
    int levels = 1 << AVX2_LEVEL, vnni = (saved & 0xe0) == 0xe0 && (more & wider) == wider && c & 1u << 11;
    if (vnni) levels |= 1 << AVX512_VNNI_LEVEL;
#if defined(TRY_AVX_VNNI)
    if (vnni) levels |= 1 << AVX_VNNI_LEVEL;
#elif defined(AVX_VNNI)
    if (last >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4) levels |= 1 << AVX_VNNI_LEVEL;
#endif
    return levels;
}
#elif defined(__aarch64__)

static int has_dotprod(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
#elif defined(__APPLE__)
    int known = 0;
    size_t size = sizeof known;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &known, &size, NULL, 0) == 0 && known;
#elif defined(_WIN32)
    return IsProcessorFeaturePresent(43); /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
#else
    return 0;
#endif
}
#endif

/* The levels that processor and system know, a bit each. To be asked once: a virtual machine takes its time. */
EXPORT int quatrain_levels(void) {
    int levels = 1 << PORTABLE_LEVEL;
#if defined(__x86_64__)
    levels |= x86_levels();
#elif defined(__aarch64__)
    if (has_dotprod()) levels |= 1 << NEON_DOTPROD_LEVEL;
#endif
    return levels;
}

/* -- Rows of x -- */

/* A row of x: bytes [groups][32]; what one of them stands for, the sum of what all do, and -128 times the sum of the
 * bytes themselves, [groups] each. */
typedef struct {
    int8_t *bytes;
    float *scales, *sums;
    int32_t *offsets;
} Row;

typedef struct {
    const float *x;
    int64_t columns, groups;
    Row *rows;
} Rounding;

static size_t row_bytes(int64_t groups) {
    return (size_t)groups * (GROUP + 2 * sizeof(float) + sizeof(int32_t));
}

/* Lays rows out in `room`, which holds row_bytes for each of them. */
static void place_rows(Row *rows, int64_t count, int64_t groups, char *room) {
    for (int64_t i = 0; i < count; i++, room += row_bytes(groups)) {
        rows[i].scales = (float *)room;
        rows[i].sums = rows[i].scales + groups;
        rows[i].offsets = (int32_t *)(rows[i].sums + groups);
        rows[i].bytes = (int8_t *)(rows[i].offsets + groups);
    }
}

/* Nearest, ties to even, for sizes below 2^22. */
INLINE float nearest(float value) {
    return (value + 0x1.8p23f) - 0x1.8p23f;
}

/* `values` are a whole group. One that holds an infinity or no number makes every product with it no number. The sum is
 * that of the rounded values: with the exact one, errors would be weighed by the weights' distance from the minimum
 * instead of by the weights, which are smaller. */
INLINE void round_group(const float *values, const Row *row, int64_t group) {
    int8_t *bytes = row->bytes + group * GROUP;
    float sizes[ROWS] = {0}, most = 0;
    int broken = 0, total = 0;
    for (int i = 0; i < GROUP; i += ROWS) {
        for (int lane = 0; lane < ROWS; lane++) {
            float size = fabsf(values[i + lane]);
            sizes[lane] = size > sizes[lane] ? size : sizes[lane];
        }
    }
    for (int i = 0; i < GROUP; i++) broken |= !(fabsf(values[i]) <= FLT_MAX);
    for (int lane = 0; lane < ROWS; lane++) most = sizes[lane] > most ? sizes[lane] : most;
    float inverse = most > 1e-36f && !broken ? 127 / most : 0; /* 127 / 1e-37 would be infinite */
    for (int i = 0; i < GROUP; i++) {
        bytes[i] = broken ? 0 : (int8_t)(int32_t)nearest(values[i] * inverse);
        total += bytes[i];
    }
    row->scales[group] = broken ? NAN : most / 127;
    row->sums[group] = row->scales[group] * (float)total;
    row->offsets[group] = -128 * total;
}

INLINE void round_rows_body(const Rounding *job, int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i++) {
        const float *x = job->x + i * job->columns;
        const Row *row = &job->rows[i];
        int64_t whole = job->columns / GROUP;
        for (int64_t group = 0; group < whole; group++)
            round_group(x + group * GROUP, row, group);
        if (whole < job->groups) {
            float last[GROUP] = {0};
            memcpy(last, x + whole * GROUP, (size_t)(job->columns - whole * GROUP) * sizeof *last);
            round_group(last, row, whole);
        }
    }
}

static void round_rows(const void *context, int64_t first, int64_t end) {
    round_rows_body(context, first, end);
}

#if defined(__x86_64__)
AVX2 static void round_rows_avx2(const void *context, int64_t first, int64_t end) {
    round_rows_body(context, first, end);
}
#endif

static const Task ROUND_ROWS[ALL_LEVELS] = {
    [PORTABLE_LEVEL] = round_rows,
#if defined(__x86_64__)
    [AVX2_LEVEL] = round_rows_avx2,
    [AVX_VNNI_LEVEL] = round_rows_avx2,
    [AVX512_VNNI_LEVEL] = round_rows_avx2,
#endif
    [NEON_DOTPROD_LEVEL] = round_rows,
};

/* -- Packed matrices -- */

typedef struct {
    int bits;
    int64_t rows, groups;     /* rows as the user sees them; the blocks are filled up */
    const uint8_t *blocks;    /* [rows / 8][groups][lanes][8][4] */
    const uint16_t *scales;   /* float16 [rows / 8][groups][8] */
    const uint16_t *minimums; /* the same, or NULL */
} Matrix;

/* The products of a strip, two blocks of a matrix, with the first rows of x: as many of them as a tile of the level has,
 * at most `left`. Returns how many; out [that many][STRIP]. What is added up for a row of x, and in which order, is the
 * same in every tile. */
typedef int (*StripProduct)(const Matrix *matrix, const int64_t blocks[2], const Row *x, int64_t left, float *out);

/* Where a group of a block begins among all groups. */
INLINE int64_t place(const Matrix *matrix, int64_t block, int64_t group) {
    return block * matrix->groups + group;
}

INLINE const uint8_t *group_bytes(const Matrix *matrix, int bits, int64_t at) {
    return matrix->blocks + at * (ROWS * GROUP * bits / 8);
}

/* A group's levels as bytes [8 lanes][8 rows][4]. */
INLINE void unpack_group(int bits, const uint8_t *bytes, int8_t levels[GROUP * ROWS]) {
    enum { HALF = GROUP * ROWS / 2 };
    for (int i = 0; i < HALF; i++) {
        levels[i] = (int8_t)(bits == 4 ? bytes[i] & 15 : bytes[i]);
        levels[HALF + i] = (int8_t)(bits == 4 ? bytes[i] >> 4 : bytes[HALF + i]);
    }
}

INLINE int32_t four_bytes(const int8_t *from) {
    int32_t four;
    memcpy(&four, from, 4);
    return four;
}

INLINE int32_t dot_portable(const int8_t *levels, const int8_t *bytes) {
    int32_t sum = 0;
    for (int lane = 0; lane < GROUP / 4; lane++)
        for (int i = 0; i < 4; i++) sum += levels[lane * ROWS * 4 + i] * bytes[lane * 4 + i];
    return sum;
}

INLINE void tile_portable(const Matrix *matrix, int bits, int64_t block, const Row *x, int count, float *out) {
    int8_t levels[GROUP * ROWS];
    for (int i = 0; i < count; i++) memset(out + i * STRIP, 0, ROWS * sizeof *out);
    for (int64_t group = 0; group < matrix->groups; group++) {
        int64_t at = place(matrix, block, group);
        unpack_group(bits, group_bytes(matrix, bits, at), levels);
        for (int row = 0; row < ROWS; row++) {
            float scale = half_to_float(matrix->scales[at * ROWS + row]);
            float minimum = bits == 4 ? half_to_float(matrix->minimums[at * ROWS + row]) : 0;
            for (int i = 0; i < count; i++) {
                float *total = out + i * STRIP + row;
                int32_t sum = dot_portable(levels + row * 4, x[i].bytes + group * GROUP);
                *total += (float)sum * (scale * x[i].scales[group]);
                if (bits == 4) *total += minimum * x[i].sums[group];
            }
        }
    }
}

/* A strip of a level whose tiles are of one block; the counts are constants where the tile is compiled. */
#define BLOCK_BY_BLOCK(name, tile)                                                                                   \
    static int name(const Matrix *matrix, const int64_t blocks[2], const Row *x, int64_t left, float *out) {         \
        int narrow = matrix->bits == 4, count = left < 4 ? 1 : 4;                                                    \
        for (int half = 0; half < 2; half++, out += ROWS) {                                                          \
            if (narrow && count == 1) tile(matrix, 4, blocks[half], x, 1, out);                                      \
            else if (narrow) tile(matrix, 4, blocks[half], x, 4, out);                                               \
            else if (count == 1) tile(matrix, 8, blocks[half], x, 1, out);                                           \
            else tile(matrix, 8, blocks[half], x, 4, out);                                                           \
        }                                                                                                            \
        return count;                                                                                                \
    }

BLOCK_BY_BLOCK(strip_portable, tile_portable)

#if defined(__x86_64__)

AVX2 INLINE __m256 load_halves(const uint16_t *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
}

AVX2 INLINE __m256i load_bytes(const uint8_t *from) {
    return _mm256_loadu_si256((const __m256i *)from);
}

/* Asks for a line that is read once and does not have to stay. */
INLINE void fetch_once(const void *start, int64_t bytes) {
    __builtin_prefetch((const void *)((uintptr_t)start + (uintptr_t)bytes), 0, 0);
}

/* Asks for what a row of blocks holds a little later: processors that foresee it stop at the end of each page. */
INLINE void foresee(const Matrix *matrix, int bits, int64_t at, int64_t group) {
    const int64_t bytes = ROWS * GROUP * bits / 8, ahead = bits == 8 ? 16 : 24; /* groups, which measured best */
    for (int64_t i = 0; i < bytes; i += LINE) fetch_once(matrix->blocks, (at + ahead) * bytes + i);
    if (group % (LINE / (ROWS * 2))) return;
    fetch_once(matrix->scales, (at + ahead) * ROWS * 2);
    if (bits == 4) fetch_once(matrix->minimums, (at + ahead) * ROWS * 2);
}

/* Adds a group's whole sums to the totals of `count` rows. */
AVX2 INLINE void add_group(const Matrix *matrix, int bits, int64_t at, const Row *x, int64_t group, int count,
                           const __m256i *sums, __m256 *totals) {
    __m256 scales = load_halves(matrix->scales + at * ROWS);
    for (int i = 0; i < count; i++) {
        __m256 scale = _mm256_mul_ps(scales, _mm256_set1_ps(x[i].scales[group]));
        totals[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[i]), scale, totals[i]);
    }
    if (bits == 8) return;
    __m256 minimums = load_halves(matrix->minimums + at * ROWS);
    for (int i = 0; i < count; i++)
        totals[i] = _mm256_fmadd_ps(minimums, _mm256_set1_ps(x[i].sums[group]), totals[i]);
}

/* A lane of a group's levels as unsigned bytes. INT8 levels get 128 more, which the offsets of x take away. */
AVX2 INLINE __m256i unsigned_levels(int bits, const uint8_t *weights, int lane) {
    if (bits == 8) return _mm256_xor_si256(load_bytes(weights + lane * ROWS * 4), _mm256_set1_epi8(-128));
    __m256i pair = load_bytes(weights + lane % 4 * ROWS * 4);
    return _mm256_and_si256(lane < 4 ? pair : _mm256_srli_epi16(pair, 4), _mm256_set1_epi8(15));
}

AVX2 INLINE void sum4_avx2(const uint8_t *weights, const Row *x, int64_t group, int count, __m256i *sums) {
    __m256i levels[8];
    for (int lane = 0; lane < 8; lane++) levels[lane] = unsigned_levels(4, weights, lane);
    for (int i = 0; i < count; i++) {
        const int8_t *bytes = x[i].bytes + group * GROUP;
        __m256i pairs = _mm256_setzero_si256(); /* of 16 bits: 15 x 127 x 2 x 8 stays inside */
        for (int lane = 0; lane < 8; lane++) {
            __m256i four = _mm256_set1_epi32(four_bytes(bytes + lane * 4));
            pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(levels[lane], four));
        }
        sums[i] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
}

AVX2 INLINE void sum8_avx2(const uint8_t *weights, const Row *x, int64_t group, int count, __m256i *sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int i = 0; i < count; i++) sums[i] = _mm256_setzero_si256();
    for (int lane = 0; lane < 8; lane++) {
        __m256i weight = load_bytes(weights + lane * ROWS * 4);
        __m256i size = _mm256_abs_epi8(weight); /* at most 128, unsigned: 128 x 127 x 2 stays inside 16 bits */
        for (int i = 0; i < count; i++) {
            __m256i bytes = _mm256_set1_epi32(four_bytes(x[i].bytes + group * GROUP + lane * 4));
            __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(bytes, weight));
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
        }
    }
}

AVX2 INLINE void tile_avx2(const Matrix *matrix, int bits, int64_t block, const Row *x, int count, float *out) {
    __m256 totals[4];
    __m256i sums[4];
    for (int i = 0; i < count; i++) totals[i] = _mm256_setzero_ps();
    for (int64_t group = 0; group < matrix->groups; group++) {
        int64_t at = place(matrix, block, group);
        const uint8_t *weights = group_bytes(matrix, bits, at);
        if (count == 1) foresee(matrix, bits, at, group);
        if (bits == 4) sum4_avx2(weights, x, group, count, sums);
        else sum8_avx2(weights, x, group, count, sums);
        add_group(matrix, bits, at, x, group, count, sums, totals);
    }
    for (int i = 0; i < count; i++) _mm256_storeu_ps(out + i * STRIP, totals[i]);
}

AVX2 BLOCK_BY_BLOCK(strip_avx2, tile_avx2)

#if defined(AVX_VNNI)

AVX_VNNI INLINE void tile_avx_vnni(const Matrix *matrix, int bits, int64_t block, const Row *x, int count, float *out) {
    __m256 totals[4];
    __m256i sums[4];
    for (int i = 0; i < count; i++) totals[i] = _mm256_setzero_ps();
    for (int64_t group = 0; group < matrix->groups; group++) {
        int64_t at = place(matrix, block, group);
        if (count == 1) foresee(matrix, bits, at, group);
        for (int i = 0; i < count; i++) sums[i] = _mm256_set1_epi32(bits == 8 ? x[i].offsets[group] : 0);
        for (int lane = 0; lane < 8; lane++) {
            __m256i levels = unsigned_levels(bits, group_bytes(matrix, bits, at), lane);
            for (int i = 0; i < count; i++) {
                const int8_t *bytes = x[i].bytes + group * GROUP + lane * 4;
                sums[i] = add_dots(sums[i], levels, _mm256_set1_epi32(four_bytes(bytes)));
            }
        }
        add_group(matrix, bits, at, x, group, count, sums, totals);
    }
    for (int i = 0; i < count; i++) _mm256_storeu_ps(out + i * STRIP, totals[i]);
}

AVX_VNNI BLOCK_BY_BLOCK(strip_avx_vnni, tile_avx_vnni)
#else
#define strip_avx_vnni strip_avx2 /* never asked for */
#endif

/* Both blocks of the strip side by side. */
AVX512_VNNI INLINE __m512i beside(__m256i first, __m256i second) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

AVX512_VNNI INLINE __m512 halves_beside(const uint16_t *values, const int64_t at[2]) {
    __m128i first = _mm_loadu_si128((const __m128i *)(values + at[0] * ROWS));
    __m128i second = _mm_loadu_si128((const __m128i *)(values + at[1] * ROWS));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1));
}

AVX512_VNNI INLINE int tile_avx512(const Matrix *matrix, int bits, const int64_t blocks[2], const Row *x, int count,
                                   float *out) {
    __m512 totals[TILE]; /* GCC keeps them in registers where it is told to unroll */
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) totals[i] = _mm512_setzero_ps();
    for (int64_t group = 0; group < matrix->groups; group++) {
        const int64_t at[2] = {place(matrix, blocks[0], group), place(matrix, blocks[1], group)};
        const uint8_t *first = group_bytes(matrix, bits, at[0]), *second = group_bytes(matrix, bits, at[1]);
        __m512 scales = halves_beside(matrix->scales, at), minimums;
        if (bits == 4) minimums = halves_beside(matrix->minimums, at);
        __m512i levels[8];
#pragma GCC unroll 8
        for (int lane = 0; lane < 8; lane++)
            levels[lane] = beside(unsigned_levels(bits, first, lane), unsigned_levels(bits, second, lane));
#pragma GCC unroll 16
        for (int i = 0; i < count; i++) {
            const int8_t *bytes = x[i].bytes + group * GROUP;
            __m512i sums = _mm512_set1_epi32(bits == 8 ? x[i].offsets[group] : 0);
#pragma GCC unroll 8
            for (int lane = 0; lane < 8; lane++)
                sums = _mm512_dpbusd_epi32(sums, levels[lane], _mm512_set1_epi32(four_bytes(bytes + lane * 4)));
            __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x[i].scales[group]));
            totals[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), scale, totals[i]);
            if (bits == 4) totals[i] = _mm512_fmadd_ps(minimums, _mm512_set1_ps(x[i].sums[group]), totals[i]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < count; i++) _mm512_storeu_ps(out + i * STRIP, totals[i]);
    return count;
}

AVX512_VNNI static int strip_avx512_vnni(const Matrix *m, const int64_t blocks[2], const Row *x, int64_t left,
                                         float *out) {
    if (left >= 16) return m->bits == 4 ? tile_avx512(m, 4, blocks, x, 16, out) : tile_avx512(m, 8, blocks, x, 16, out);
    if (left >= 4) return m->bits == 4 ? tile_avx512(m, 4, blocks, x, 4, out) : tile_avx512(m, 8, blocks, x, 4, out);
    return strip_avx2(m, blocks, x, left, out); /* the same sums, sooner: few rows leave the long chains of dots waiting */
}
#elif defined(__aarch64__)

INLINE float32x4_t four_halves(const uint16_t *from) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
}

NEON_DOTPROD INLINE void tile_neon(const Matrix *matrix, int bits, int64_t block, const Row *x, int count, float *out) {
    const uint8x16_t low = vdupq_n_u8(15);
    float32x4_t totals[4][2];
    for (int i = 0; i < count; i++) totals[i][0] = totals[i][1] = vdupq_n_f32(0);
    for (int64_t group = 0; group < matrix->groups; group++) {
        int64_t at = place(matrix, block, group);
        const uint8_t *weights = group_bytes(matrix, bits, at);
        int32x4_t sums[4][2];
        for (int i = 0; i < count; i++) sums[i][0] = sums[i][1] = vdupq_n_s32(0);
        for (int lane = 0; lane < 8; lane++) {
            for (int half = 0; half < 2; half++) { /* four rows each */
                uint8x16_t levels = vld1q_u8(weights + (bits == 4 ? lane % 4 : lane) * ROWS * 4 + half * 16);
                if (bits == 4) levels = lane < 4 ? vandq_u8(levels, low) : vshrq_n_u8(levels, 4);
                for (int i = 0; i < count; i++) {
                    int32x4_t four = vdupq_n_s32(four_bytes(x[i].bytes + group * GROUP + lane * 4));
                    sums[i][half] = vdotq_s32(sums[i][half], vreinterpretq_s8_u8(levels), vreinterpretq_s8_s32(four));
                }
            }
        }
        for (int half = 0; half < 2; half++) {
            int64_t from = at * ROWS + half * 4;
            float32x4_t scales = four_halves(matrix->scales + from);
            for (int i = 0; i < count; i++) {
                float32x4_t scale = vmulq_n_f32(scales, x[i].scales[group]);
                totals[i][half] = vfmaq_f32(totals[i][half], vcvtq_f32_s32(sums[i][half]), scale);
            }
            if (bits == 8) continue;
            float32x4_t minimums = four_halves(matrix->minimums + from);
            for (int i = 0; i < count; i++)
                totals[i][half] = vfmaq_n_f32(totals[i][half], minimums, x[i].sums[group]);
        }
    }
    for (int i = 0; i < count; i++)
        for (int half = 0; half < 2; half++) vst1q_f32(out + i * STRIP + half * 4, totals[i][half]);
}

NEON_DOTPROD BLOCK_BY_BLOCK(strip_neon_dotprod, tile_neon)
#endif

static const StripProduct STRIPS[ALL_LEVELS] = {
    [PORTABLE_LEVEL] = strip_portable,
#if defined(__x86_64__)
    [AVX2_LEVEL] = strip_avx2,
    [AVX_VNNI_LEVEL] = strip_avx_vnni,
    [AVX512_VNNI_LEVEL] = strip_avx512_vnni,
#elif defined(__aarch64__)
    [NEON_DOTPROD_LEVEL] = strip_neon_dotprod,
#endif
};

typedef struct {
    Matrix matrix;
    StripProduct product;
    int64_t count;
    const Row *x;
    const float *bias;
    float *y;
} Product;

/* Values of a strip's rows and one row of x. */
static void store(const Product *product, int64_t strip, int64_t row_of_x, const float values[STRIP]) {
    int64_t first = strip * STRIP, left = product->matrix.rows - first;
    float *to = product->y + row_of_x * product->matrix.rows + first;
    for (int64_t row = 0; row < (left < STRIP ? left : STRIP); row++)
        to[row] = product->bias ? values[row] + product->bias[first + row] : values[row];
}

static void multiply_strips(const void *context, int64_t first, int64_t end) {
    const Product *product = context;
    float out[TILE * STRIP];
    int64_t last = (product->matrix.rows - 1) / ROWS;
    for (int64_t strip = first; strip < end; strip++) {
        const int64_t blocks[2] = {2 * strip, 2 * strip < last ? 2 * strip + 1 : last};
        for (int64_t i = 0, done; i < product->count; i += done) {
            done = product->product(&product->matrix, blocks, product->x + i, product->count - i, out);
            for (int64_t k = 0; k < done; k++) store(product, strip, i + k, out + k * STRIP);
        }
    }
}

/* How many items of so many weights make a batch: taking one costs little beside it, and all threads end together. */
static int64_t batch_of(int64_t weights) {
    int64_t batch = weights > 0 ? 65536 / weights : 1;
    return batch > 1 ? batch : 1;
}

/* y [count][rows] = x [count][columns] times the matrix's rows, plus the bias if there is one. Returns 0, or -1 when
 * memory ran out. Sizes can't overflow: the scratch is smaller than x itself and one Row for each of its rows. */
EXPORT int quatrain_multiply(Pool *pool, int level, int bits, int64_t rows, int64_t columns, const uint8_t *blocks,
                             const uint16_t *scales, const uint16_t *minimums, const float *x, int64_t count,
                             const float *bias, float *y) {
    if (count == 0) return 0;
    int64_t groups = (columns + GROUP - 1) / GROUP;
    Row *list = malloc((size_t)count * (row_bytes(groups) + sizeof(Row)));
    if (!list) return -1;
    place_rows(list, count, groups, (char *)(list + count));
    Rounding rounding = {x, columns, groups, list};
    run(pool, ROUND_ROWS[level], &rounding, count, batch_of(columns));
    Product product = {{bits, rows, groups, blocks, scales, minimums}, STRIPS[level], count, list, bias, y};
    run(pool, multiply_strips, &product, (rows + STRIP - 1) / STRIP, batch_of(STRIP * columns * count));
    free(list);
    return 0;
}

/* -- FP16 matrices, row after row -- */

/* The most products of a tile; and the fewest rows of a batch, a tile's. */
enum { PRODUCTS = 24, HALF_BATCH = 8 };

typedef struct {
    const uint16_t *weights; /* [rows][columns] */
    int64_t rows, columns;
    const float *x;
    int64_t count;
    const float *bias;
    float *y;
} HalfProduct;

static void store_half_product(const HalfProduct *job, int64_t row, int64_t i, float total) {
    job->y[i * job->rows + row] = job->bias ? total + job->bias[row] : total;
}

/* What columns beyond the last whole sixteen add to a product. */
INLINE float half_tail(const HalfProduct *job, int64_t row, int64_t i) {
    float total = 0;
    for (int64_t column = job->columns / 16 * 16; column < job->columns; column++)
        total += half_to_float(job->weights[row * job->columns + column]) * job->x[i * job->columns + column];
    return total;
}

/* In the tiles below `rows` rows of the matrix, each `apart` from the one before, meet `count` rows of x. Each product
 * has sixteen sums, added up in the same order whatever the counts are. */

INLINE void half_tile_portable(const HalfProduct *job, int64_t row, int64_t apart, int rows, int64_t i, int count) {
    float sums[PRODUCTS][16] = {{0}}, wide[16];
    for (int64_t column = 0; column + 16 <= job->columns; column += 16) {
        for (int a = 0; a < rows; a++) {
            const uint16_t *weights = job->weights + (row + a * apart) * job->columns + column;
            for (int lane = 0; lane < 16; lane++) wide[lane] = half_to_float(weights[lane]);
            for (int b = 0; b < count; b++) {
                const float *x = job->x + (i + b) * job->columns + column;
                for (int lane = 0; lane < 16; lane++) sums[a * count + b][lane] += wide[lane] * x[lane];
            }
        }
    }
    for (int a = 0; a < rows; a++) {
        for (int b = 0; b < count; b++) {
            float total = 0;
            for (int lane = 0; lane < 16; lane++) total += sums[a * count + b][lane];
            store_half_product(job, row + a * apart, i + b, total + half_tail(job, row + a * apart, i + b));
        }
    }
}

/* All rows first .. end - 1, so many at a time; and all rows of x, as many at a time as a tile of `most` has, then two,
 * then one, which meets `alone` rows of the matrix. Those lie far apart: with one row of x the memory is what takes the
 * time, and it gives more where each is read on and on than where all jump at once. */
#define ROWS_OF_HALVES(name, tile, most_rows, most, alone)                                                           \
    static void name(const void *context, int64_t first, int64_t end) {                                              \
        const HalfProduct *job = context;                                                                            \
        int64_t i = 0;                                                                                               \
        for (; i + most <= job->count; i += most) HALVES_DOWN(tile, most_rows, most)                                 \
        for (; i + 2 <= job->count; i += 2) HALVES_DOWN(tile, most_rows, 2)                                          \
        for (; i < job->count; i++) {                                                                                \
            int64_t apart = (end - first) / alone;                                                                   \
            for (int64_t row = 0; row < apart; row++) tile(job, first + row, apart, alone, i, 1);                    \
            for (int64_t row = first + apart * alone; row < end; row++) tile(job, row, 1, 1, i, 1);                  \
        }                                                                                                            \
    }
#define HALVES_DOWN(tile, at_once, count)                                                                            \
    {                                                                                                                \
        int64_t row = first;                                                                                         \
        for (; row + at_once <= end; row += at_once) tile(job, row, 1, at_once, i, count);                           \
        for (; row < end; row++) tile(job, row, 1, 1, i, count);                                                     \
    }

ROWS_OF_HALVES(multiply_halves, half_tile_portable, 1, 4, 1)

#if defined(__x86_64__)

AVX2 INLINE float add_up(__m256 values) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

AVX2 INLINE void half_tile_avx2(const HalfProduct *job, int64_t row, int64_t apart, int rows, int64_t i, int count) {
    const int64_t columns = job->columns;
    const uint16_t *weights = job->weights + row * columns;
    const float *x = job->x + i * columns;
    __m256 early[PRODUCTS], late[PRODUCTS]; /* eight sums each */
    for (int k = 0; k < rows * count; k++) early[k] = late[k] = _mm256_setzero_ps();
    for (int64_t column = 0; column + 16 <= columns; column += 16) {
        for (int half = 0; half < 2; half++) {
            __m256 *sums = half ? late : early;
            for (int a = 0; a < rows; a++) {
                __m256 wide = load_halves(weights + a * apart * columns + column + half * 8);
                for (int b = 0; b < count; b++) {
                    __m256 row_of_x = _mm256_loadu_ps(x + b * columns + column + half * 8);
                    sums[a * count + b] = _mm256_fmadd_ps(wide, row_of_x, sums[a * count + b]);
                }
            }
        }
    }
    for (int a = 0; a < rows; a++) {
        for (int b = 0; b < count; b++) {
            float total = add_up(_mm256_add_ps(early[a * count + b], late[a * count + b]));
            store_half_product(job, row + a * apart, i + b, total + half_tail(job, row + a * apart, i + b));
        }
    }
}

AVX2 ROWS_OF_HALVES(multiply_halves_avx2, half_tile_avx2, 2, 3, 6)

AVX512_VNNI INLINE void half_tile_avx512(const HalfProduct *job, int64_t row, int64_t apart, int rows, int64_t i,
                                         int count) {
    const int64_t columns = job->columns;
    const uint16_t *weights = job->weights + row * columns;
    const float *x = job->x + i * columns;
    __m512 sums[PRODUCTS], wide[8];
#pragma GCC unroll 32
    for (int k = 0; k < rows * count; k++) sums[k] = _mm512_setzero_ps();
    for (int64_t column = 0; column + 16 <= columns; column += 16) {
#pragma GCC unroll 8
        for (int a = 0; a < rows; a++)
            wide[a] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(weights + a * apart * columns + column)));
#pragma GCC unroll 8
        for (int b = 0; b < count; b++) {
            __m512 row_of_x = _mm512_loadu_ps(x + b * columns + column);
#pragma GCC unroll 8
            for (int a = 0; a < rows; a++)
                sums[a * count + b] = _mm512_fmadd_ps(wide[a], row_of_x, sums[a * count + b]);
        }
    }
    for (int a = 0; a < rows; a++) {
        for (int b = 0; b < count; b++) {
            __m512 all = sums[a * count + b];
            __m256 late = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1));
            float total = add_up(_mm256_add_ps(_mm512_castps512_ps256(all), late));
            store_half_product(job, row + a * apart, i + b, total + half_tail(job, row + a * apart, i + b));
        }
    }
}

AVX512_VNNI ROWS_OF_HALVES(multiply_halves_avx512, half_tile_avx512, 4, 6, 8)
#elif defined(__aarch64__)

INLINE void half_tile_neon(const HalfProduct *job, int64_t row, int64_t apart, int rows, int64_t i, int count) {
    const int64_t columns = job->columns;
    const uint16_t *weights = job->weights + row * columns;
    const float *x = job->x + i * columns;
    float32x4_t sums[PRODUCTS][4];
    for (int k = 0; k < rows * count; k++)
        for (int part = 0; part < 4; part++) sums[k][part] = vdupq_n_f32(0);
    for (int64_t column = 0; column + 16 <= columns; column += 16) {
        for (int part = 0; part < 4; part++) {
            for (int a = 0; a < rows; a++) {
                float32x4_t wide = four_halves(weights + a * apart * columns + column + part * 4);
                for (int b = 0; b < count; b++) {
                    float32x4_t row_of_x = vld1q_f32(x + b * columns + column + part * 4);
                    sums[a * count + b][part] = vfmaq_f32(sums[a * count + b][part], wide, row_of_x);
                }
            }
        }
    }
    for (int a = 0; a < rows; a++) {
        for (int b = 0; b < count; b++) {
            float32x4_t *parts = sums[a * count + b];
            float total = vaddvq_f32(vaddq_f32(vaddq_f32(parts[0], parts[1]), vaddq_f32(parts[2], parts[3])));
            store_half_product(job, row + a * apart, i + b, total + half_tail(job, row + a * apart, i + b));
        }
    }
}

ROWS_OF_HALVES(multiply_halves_neon, half_tile_neon, 2, 2, 2)
#endif

static const Task MULTIPLY_HALVES[ALL_LEVELS] = {
    [PORTABLE_LEVEL] = multiply_halves,
#if defined(__x86_64__)
    [AVX2_LEVEL] = multiply_halves_avx2,
    [AVX_VNNI_LEVEL] = multiply_halves_avx2,
    [AVX512_VNNI_LEVEL] = multiply_halves_avx512,
#elif defined(__aarch64__)
    [NEON_DOTPROD_LEVEL] = multiply_halves_neon,
#endif
};

/* y [count][rows] = x [count][columns] times the rows of a float16 matrix, plus the bias if there is one. */
EXPORT void quatrain_multiply_halves(Pool *pool, int level, int64_t rows, int64_t columns, const uint16_t *weights,
                                     const float *x, int64_t count, const float *bias, float *y) {
    int64_t batch = batch_of(columns * count);
    HalfProduct job = {weights, rows, columns, x, count, bias, y};
    run(pool, MULTIPLY_HALVES[level], &job, rows, batch > HALF_BATCH ? batch : HALF_BATCH);
}

/* -- Packing: eight rows at a time, one in each lane of a vector -- */

enum { STEPS = 4, LEVELS = 15 };

typedef struct {
    int bits;
    int64_t rows, columns, groups;
    const float *weights; /* [rows][columns] */
    uint8_t *blocks;
    uint16_t *scales, *minimums;
} Packing;

/* A number of each of eight rows; a comparison makes a Mask, all bits set where it holds. */
typedef float Lanes __attribute__((vector_size(ROWS * sizeof(float))));
typedef int32_t Mask __attribute__((vector_size(ROWS * sizeof(int32_t))));

/* Macros, because a function that takes vectors is another one for each instruction set. */
#define PICK(mask, yes, no) ((Lanes)(((mask) & (Mask)(yes)) | (~(mask) & (Mask)(no))))
#define LOWER(a, b) PICK((a) < (b), a, b)
#define HIGHER(a, b) PICK((a) > (b), a, b)
#define SIZE(a) ((Lanes)((Mask)(a) & 0x7fffffff))

/* A group of eight rows on a line each: weight = level * scale + minimum. */
typedef struct {
    Lanes levels[GROUP], error, scales, minimums;
} Fit;

/* A group of eight rows, columns first; zeros where the matrix has ended. */
INLINE void gather(const Packing *packing, int64_t block, int64_t group, Lanes weights[GROUP]) {
    int64_t columns = packing->columns - group * GROUP, rows = packing->rows - block * ROWS;
    if (columns < GROUP || rows < ROWS) memset(weights, 0, GROUP * sizeof *weights);
    for (int64_t row = 0; row < (rows < ROWS ? rows : ROWS); row++) {
        const float *from = packing->weights + (block * ROWS + row) * packing->columns + group * GROUP;
        for (int64_t i = 0; i < (columns < GROUP ? columns : GROUP); i++) weights[i][row] = from[i];
    }
}

/* Rounds scales and minimums to halves, then the weights to levels from lowest to highest. */
INLINE void fit_levels(Fit *fit, const Lanes weights[GROUP], float lowest, float highest) {
    const Lanes zero = {0}, lows = zero + lowest, highs = zero + highest;
    for (int row = 0; row < ROWS; row++) {
        fit->scales[row] = half_to_float(float_to_half(fit->scales[row]));
        fit->minimums[row] = half_to_float(float_to_half(fit->minimums[row]));
    }
    Lanes scales = fit->scales, minimums = fit->minimums, error = zero;
    Lanes steps = PICK(scales != zero, scales, zero + INFINITY);
    for (int i = 0; i < GROUP; i++) {
        Lanes level = (weights[i] - minimums) / steps;
        level = HIGHER(level, lows); /* the lowest, too, if it is not a number */
        level = LOWER(level, highs);
        level = (level + 0x1.8p23f) - 0x1.8p23f; /* to the nearest, ties to even */
        Lanes off = level * scales + minimums - weights[i];
        error += off * off;
        fit->levels[i] = level;
    }
    fit->error = error;
}

/* Scales and minimums of the least-squares line through levels and weights. */
INLINE void fit_line(Fit *fit, const Lanes weights[GROUP]) {
    const Lanes zero = {0};
    Lanes middle = zero, mean = zero, spread = zero, common = zero;
    for (int i = 0; i < GROUP; i++) {
        middle += fit->levels[i];
        mean += weights[i];
    }
    middle /= GROUP;
    mean /= GROUP;
    for (int i = 0; i < GROUP; i++) {
        Lanes centred = fit->levels[i] - middle;
        spread += centred * centred;
        common += centred * weights[i];
    }
    fit->scales = common / PICK(spread > zero, spread, zero + 1);
    fit->minimums = mean - fit->scales * middle;
}

INLINE void keep_better(Fit *best, const Fit *found) {
    Mask better = found->error < best->error;
    for (int i = 0; i < GROUP; i++) best->levels[i] = PICK(better, found->levels[i], best->levels[i]);
    best->error = PICK(better, found->error, best->error);
    best->scales = PICK(better, found->scales, best->scales);
    best->minimums = PICK(better, found->minimums, best->minimums);
}

/* As _fit_between. */
INLINE void fit_between(Fit *best, const Lanes weights[GROUP]) {
    Lanes lowest = weights[0], highest = weights[0];
    for (int i = 1; i < GROUP; i++) {
        lowest = LOWER(weights[i], lowest);
        highest = HIGHER(weights[i], highest);
    }
    best->minimums = lowest;
    best->scales = (highest - lowest) / LEVELS;
    fit_levels(best, weights, 0, LEVELS);
    Fit found = *best;
    for (int step = 1; step < STEPS; step++) {
        fit_line(&found, weights);
        fit_levels(&found, weights, 0, LEVELS);
        keep_better(best, &found);
    }
}

/* As _fit_symmetric. */
INLINE void fit_symmetric(Fit *fit, const Lanes weights[GROUP]) {
    Lanes largest = {0};
    for (int i = 0; i < GROUP; i++) {
        Lanes size = SIZE(weights[i]);
        largest = HIGHER(size, largest);
    }
    fit->scales = largest / 127;
    fit->minimums = (Lanes){0};
    fit_levels(fit, weights, -127, 127);
}

/* Writes a group's levels, without those of columns that the matrix doesn't have. */
INLINE void scatter(const Packing *packing, int64_t at, int64_t group, Fit *fit) {
    int64_t columns = packing->columns - group * GROUP;
    for (int64_t i = columns; i < GROUP; i++) fit->levels[i] = (Lanes){0};
    for (int row = 0; row < ROWS; row++) {
        packing->scales[at * ROWS + row] = float_to_half(fit->scales[row]);
        if (packing->minimums) packing->minimums[at * ROWS + row] = float_to_half(fit->minimums[row]);
    }
    uint8_t *to = packing->blocks + at * ROWS * GROUP * packing->bits / 8;
    for (int lane = 0; lane < packing->bits; lane++) { /* 4 or 8 of them, as it happens */
        for (int row = 0; row < ROWS; row++) {
            for (int i = 0; i < 4; i++) {
                int level = (int)fit->levels[lane * 4 + i][row];
                if (packing->bits == 4) level |= (int)fit->levels[GROUP / 2 + lane * 4 + i][row] << 4;
                *to++ = (uint8_t)level;
            }
        }
    }
}

INLINE void pack_blocks_body(const Packing *packing, int64_t first, int64_t end) {
    Lanes weights[GROUP];
    Fit fit;
    for (int64_t block = first; block < end; block++) {
        for (int64_t group = 0; group < packing->groups; group++) {
            gather(packing, block, group, weights);
            if (packing->bits == 4) fit_between(&fit, weights);
            else fit_symmetric(&fit, weights);
            scatter(packing, block * packing->groups + group, group, &fit);
        }
    }
}

static void pack_blocks(const void *context, int64_t first, int64_t end) {
    pack_blocks_body(context, first, end);
}

#if defined(__x86_64__)
AVX2 static void pack_blocks_avx2(const void *context, int64_t first, int64_t end) {
    pack_blocks_body(context, first, end);
}
#endif

static const Task PACK_BLOCKS[ALL_LEVELS] = {
    [PORTABLE_LEVEL] = pack_blocks,
#if defined(__x86_64__)
    [AVX2_LEVEL] = pack_blocks_avx2,
    [AVX_VNNI_LEVEL] = pack_blocks_avx2,
    [AVX512_VNNI_LEVEL] = pack_blocks_avx2,
#endif
    [NEON_DOTPROD_LEVEL] = pack_blocks,
};

/* Packs float weights [rows][columns] into blocks, scales and (INT4 only) minimums. */
EXPORT void quatrain_quantize(Pool *pool, int level, int bits, int64_t rows, int64_t columns, const float *weights,
                              uint8_t *blocks, uint16_t *scales, uint16_t *minimums) {
    Packing packing = {bits, rows, columns, (columns + GROUP - 1) / GROUP, weights, blocks, scales, minimums};
    run(pool, PACK_BLOCKS[level], &packing, (rows + ROWS - 1) / ROWS, batch_of(ROWS * columns));
}

/* -- Whole steps: ids of consecutive tokens -> logits. models/fused.py describes a model in these structures, which
 * models/kernels/structures.py repeats. A row's results don't depend on the rows beside it, nor on the threads. -- */

enum { CHUNK = 128, ROWS_AT_ONCE = 16, WIDEST_HEAD = 512, SECTIONS = 2, WORTH_SHARING = 32768, LEAST_SHARE = 8192 };

/* A matrix [rows][columns] of any tier, and its bias or NULL. */
typedef struct {
    int64_t bits; /* 4 and 8: packed; 16 and 32: floats, row after row */
    int64_t rows, columns;
    const void *values;
    const uint16_t *scales, *minimums;
    const float *bias;
} Weights;

/* LayerNorm, or without a bias RMSNorm; nothing without a weight. */
typedef struct {
    const float *weight, *bias;
    double eps;
} Norm;

/* Matrices without rows are parts of the one before them: of queries, keys and values, and of gate and up. */
typedef struct {
    Norm before_attention, before_mlp;
    Weights queries, keys, values, dense, gate, up, down;
} Layer;

/* Where the heads of queries, keys or values begin in a row of their product, and how far apart they are. */
typedef struct {
    int64_t first, stride;
} Heads;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, head_size, inner, gated;
    int64_t sections, pairs, apart; /* of rotation in a head; dimensions between a pair's two, 0 for no rotation */
    double alpha;                   /* what a residual's normed input is multiplied by; 0 where it is the input itself */
    Heads queries, keys, values;
    const float *slopes; /* ALiBi, [heads], or NULL */
    Norm after_embedding, last;
    Weights embedding, head;
    const Layer *layer;
} Model;

typedef struct {
    const int64_t *ids; /* [count] */
    int64_t count, wanted; /* rows, and how many of the last ones get logits */
    const float *frequencies; /* [pairs] */
    int64_t positions[SECTIONS], steps[SECTIONS]; /* of the first row in each section; how much more each next row has */
    void *keys, *values;                          /* [layers][kv_heads][capacity][head_size] */
    int64_t cache_bits, capacity, start;          /* the first row's keys go to `start` */
    float *logits;                                /* [wanted][vocabulary] */
    void *room;                                   /* quatrain_step_room bytes */
} Step;

typedef struct Leaves Leaves;

/* A step at work, and its room. A head's dimensions are filled up to `wide` with zeros. */
typedef struct {
    const Model *model;
    const Step *step;
    const Layer *layer;
    const Leaves *leaves;
    Pool *pool; /* NULL: alone */
    int level;
    int64_t number, wide, chunks; /* of the layer; of chunks of positions, for the last row */
    int64_t first_row;            /* of those whose attention is being computed */
    int settles;                  /* whether `out` is to be added to x before the norm */
    Norm norm;
    float *x, *normed, *out, *queries, *keys, *values, *turned, *attended, *gate, *up, *active;
    float *cosines, *sines; /* [count][sections][pairs] */
    float *scores;          /* [rows at once][heads][chunks][CHUNK] */
    float *parts;           /* [rows at once][heads][chunks][wide]: what each chunk of positions contributes */
    float *shares;          /* [rows at once][heads][chunks][2]: its highest score, and its sum of exponentials */
    Row *rows;
} Run;

/* What is compiled once for each instruction set. */
struct Leaves {
    void (*widen)(const uint16_t *from, float *to, int64_t count);
    void (*narrow)(const float *from, uint16_t *to, int64_t count);
    void (*score)(const float *query, const float *keys, int64_t wide, float *scores);
    void (*mix)(const float *weights, const float *values, int64_t wide, float *to);
    Task settle, turn, attend, merge, activate;
};

INLINE float total_of(const float sums[ROWS]) {
    float total = 0;
    for (int lane = 0; lane < ROWS; lane++) total += sums[lane];
    return total;
}

/* e^x for x from -87 to 88, what is beyond as these: to a few units in the last place. */
INLINE void exponentials(Lanes *x) {
    const Lanes zero = {0}, one = zero + 1, magic = zero + 0x1.8p23f;
    const Lanes low = HIGHER(zero - 87, *x), bounded = LOWER(zero + 88, low); /* what is no number passes both */
    const Lanes shifted = bounded * 0x1.715476p0f + magic; /* the whole number nearest to x / ln 2 is in the low bits */
    const Lanes whole = shifted - magic;
    Lanes rest = bounded - whole * 0x1.62e4p-1f; /* ln 2 in two parts, so that the first product is exact */
    rest -= whole * 0x1.7f7d1cp-20f;
    Lanes series = one / 5040;
    series = series * rest + one / 720;
    series = series * rest + one / 120;
    series = series * rest + one / 24;
    series = series * rest + one / 6;
    series = series * rest + 0.5f;
    series = series * rest + one;
    series = series * rest + one;
    *x = series * (Lanes)(((Mask)shifted + 127) << 23);
}

/* -- Leaves: from rows to rows -- */

INLINE void normalise(const Norm *norm, const float *x, float *to, int64_t size) {
    float sums[4 * ROWS] = {0}, mean = 0, squares = 0;
    int64_t i;
    if (norm->bias) {
        for (i = 0; i + 4 * ROWS <= size; i += 4 * ROWS)
            for (int lane = 0; lane < 4 * ROWS; lane++) sums[lane] += x[i + lane];
        for (; i < size; i++) sums[i % ROWS] += x[i];
        for (int part = 0; part < 4; part++) mean += total_of(sums + part * ROWS);
        mean /= (float)size;
        memset(sums, 0, sizeof sums);
    }
    for (i = 0; i + 4 * ROWS <= size; i += 4 * ROWS)
        for (int lane = 0; lane < 4 * ROWS; lane++) sums[lane] += (x[i + lane] - mean) * (x[i + lane] - mean);
    for (; i < size; i++) sums[i % ROWS] += (x[i] - mean) * (x[i] - mean);
    for (int part = 0; part < 4; part++) squares += total_of(sums + part * ROWS);
    float scale = 1 / sqrtf(squares / (float)size + (float)norm->eps);
    if (norm->bias)
        for (i = 0; i < size; i++) to[i] = (x[i] - mean) * scale * norm->weight[i] + norm->bias[i];
    else
        for (i = 0; i < size; i++) to[i] = x[i] * scale * norm->weight[i];
}

static int is_packed(const Weights *weights) {
    return weights->bits < 16;
}

INLINE void round_row(const float *x, int64_t columns, Row *row) {
    Rounding rounding = {x, columns, (columns + GROUP - 1) / GROUP, row};
    round_rows_body(&rounding, 0, 1);
}

/* Adds what attention or the MLP gave to the residual, and norms the sum for what comes next. */
INLINE void settle_body(const void *context, int64_t first, int64_t end) {
    const Run *run = context;
    const Model *model = run->model;
    const int64_t hidden = model->hidden;
    const float alpha = (float)model->alpha;
    for (int64_t row = first; row < end; row++) {
        float *x = run->x + row * hidden, *normed = run->normed + row * hidden;
        const float *out = run->out + row * hidden;
        if (run->settles && alpha != 0)
            for (int64_t i = 0; i < hidden; i++) x[i] = alpha * normed[i] + out[i];
        else if (run->settles)
            for (int64_t i = 0; i < hidden; i++) x[i] += out[i];
        normalise(&run->norm, x, normed, hidden);
        round_row(normed, hidden, &run->rows[row]);
    }
}

INLINE void turn_head(const Run *run, const float *x, const float *cosines, const float *sines, float *to) {
    const Model *model = run->model;
    const int64_t pairs = model->pairs, apart = model->apart, size = model->head_size;
    for (int64_t i = 0; i < size; i++) to[i] = x[i];
    for (int64_t i = size; i < run->wide; i++) to[i] = 0;
    if (apart == 0) return;
    for (int64_t section = 0; section < model->sections; section++) {
        const int64_t from = section * (size / model->sections);
        const float *cosine = cosines + section * pairs, *sine = sines + section * pairs;
        if (apart == 1) {
            for (int64_t i = 0; i < pairs; i++) {
                float even = x[from + 2 * i], odd = x[from + 2 * i + 1];
                to[from + 2 * i] = even * cosine[i] - odd * sine[i];
                to[from + 2 * i + 1] = odd * cosine[i] + even * sine[i];
            }
        } else {
            for (int64_t i = 0; i < pairs; i++) {
                float one = x[from + i], other = x[from + apart + i];
                to[from + i] = one * cosine[i] - other * sine[i];
                to[from + apart + i] = other * cosine[i] + one * sine[i];
            }
        }
    }
}

/* Where a row's keys or values of a head are in the cache. */
static inline void *cache_place(const Run *run, void *cache, int64_t kv_head, int64_t position) {
    const Step *step = run->step;
    int64_t row = (run->number * run->model->kv_heads + kv_head) * step->capacity + position;
    return (char *)cache + row * run->model->head_size * step->cache_bits / 8;
}

static void keep(const Run *run, void *cache, int64_t kv_head, int64_t position, const float *from) {
    void *to = cache_place(run, cache, kv_head, position);
    const int64_t size = run->model->head_size;
    if (run->step->cache_bits == 16) run->leaves->narrow(from, to, size);
    else memcpy(to, from, (size_t)size * sizeof *from);
}

/* Turns queries and keys by their positions, and writes keys and values to the cache. */
INLINE void turn_body(const void *context, int64_t first, int64_t end) {
    const Run *run = context;
    const Model *model = run->model;
    float turned[WIDEST_HEAD + ROWS];
    for (int64_t row = first; row < end; row++) {
        const int64_t position = run->step->start + row, angles = row * model->sections * model->pairs;
        const float *cosines = run->cosines + angles, *sines = run->sines + angles;
        const float *queries = run->queries + row * run->layer->queries.rows;
        const float *keys = run->keys + row * (run->layer->keys.rows ? run->layer->keys.rows : run->layer->queries.rows);
        const float *values = run->values + row * (run->layer->values.rows ? run->layer->values.rows : run->layer->queries.rows);
        for (int64_t head = 0; head < model->heads; head++) {
            const float *from = queries + model->queries.first + head * model->queries.stride;
            turn_head(run, from, cosines, sines, run->turned + (row * model->heads + head) * run->wide);
        }
        for (int64_t head = 0; head < model->kv_heads; head++) {
            turn_head(run, keys + model->keys.first + head * model->keys.stride, cosines, sines, turned);
            keep(run, run->step->keys, head, position, turned);
            keep(run, run->step->values, head, position, values + model->values.first + head * model->values.stride);
        }
    }
}

/* The next `count` (at most ROWS) rows of a head's keys or values, [ROWS][wide]; what is beyond is zero. */
INLINE void fetch(const Run *run, const void *from, int64_t count, float *to) {
    const int64_t size = run->model->head_size, wide = run->wide;
    if (size < wide || count < ROWS) memset(to, 0, (size_t)(ROWS * wide) * sizeof *to);
    if (run->step->cache_bits == 16 && size == wide) {
        run->leaves->widen(from, to, count * size);
    } else {
        for (int64_t i = 0; i < count; i++) {
            if (run->step->cache_bits == 16) run->leaves->widen((const uint16_t *)from + i * size, to + i * wide, size);
            else memcpy(to + i * wide, (const float *)from + i * size, (size_t)size * sizeof *to);
        }
    }
}

/* The products of a query with ROWS keys, [ROWS][wide]. */
static void score(const float *query, const float *keys, int64_t wide, float *scores) {
    for (int key = 0; key < ROWS; key++, keys += wide) {
        float sums[ROWS] = {0};
        for (int64_t i = 0; i < wide; i += ROWS)
            for (int lane = 0; lane < ROWS; lane++) sums[lane] += query[i + lane] * keys[i + lane];
        scores[key] = total_of(sums);
    }
}

/* Adds ROWS values, [ROWS][wide], by their weights. */
static void mix(const float *weights, const float *values, int64_t wide, float *to) {
    for (int64_t i = 0; i < wide; i++) {
        float sum = to[i];
        for (int value = 0; value < ROWS; value++) sum += weights[value] * values[value * wide + i];
        to[i] = sum;
    }
}

/* Scores of `count` positions -> their exponentials relative to the highest, with zeros behind them to a multiple of
 * ROWS. `behind` is how far the first position is behind the query's. */
INLINE void weigh(float *scores, int64_t count, float scale, float slope, int64_t behind, float *share) {
    const int64_t filled = (count + ROWS - 1) / ROWS * ROWS;
    const Lanes ahead = {0, 1, 2, 3, 4, 5, 6, 7};
    Lanes *lanes = (Lanes *)scores, most = {0}, sums = {0};
    float highest = -INFINITY, sum = 0;
    most += highest;
    for (int64_t i = 0; i < filled / ROWS; i++) {
        lanes[i] = lanes[i] * scale + (ahead + (float)(i * ROWS - behind)) * slope;
        for (int64_t j = count; j < (i + 1) * ROWS; j++) scores[j] = -INFINITY;
        most = HIGHER(most, lanes[i]);
    }
    for (int lane = 0; lane < ROWS; lane++) highest = highest > most[lane] ? highest : most[lane];
    for (int64_t i = 0; i < filled / ROWS; i++) {
        lanes[i] -= highest;
        exponentials(&lanes[i]);
        for (int64_t j = count; j < (i + 1) * ROWS; j++) scores[j] = 0;
        sums += lanes[i];
    }
    for (int lane = 0; lane < ROWS; lane++) sum += sums[lane];
    share[0] = highest;
    share[1] = sum;
}

/* One row's heads that share a key/value head, over one chunk of positions. */
INLINE void attend_chunk(const Run *run, int64_t row, int64_t kv_head, int64_t chunk) {
    const Model *model = run->model;
    const int64_t group = model->heads / model->kv_heads, wide = run->wide;
    const int64_t position = run->step->start + run->first_row + row, from = chunk * CHUNK;
    const int64_t count = position + 1 - from < CHUNK ? position + 1 - from : CHUNK;
    const char *keys = cache_place(run, run->step->keys, kv_head, from);
    const char *values = cache_place(run, run->step->values, kv_head, from);
    const int64_t stride = ROWS * model->head_size * run->step->cache_bits / 8;
    const float *query = run->turned + ((run->first_row + row) * model->heads + kv_head * group) * wide;
    const int64_t first = (row * model->heads + kv_head * group) * run->chunks + chunk;
    const float scale = 1 / sqrtf((float)model->head_size);
    float fetched[ROWS * WIDEST_HEAD];
    for (int64_t i = 0; i < count; i += ROWS, keys += stride) {
        fetch(run, keys, count - i < ROWS ? count - i : ROWS, fetched);
        for (int64_t head = 0; head < group; head++)
            run->leaves->score(query + head * wide, fetched, wide, run->scores + (first + head * run->chunks) * CHUNK + i);
    }
    for (int64_t head = 0; head < group; head++) {
        const int64_t at = first + head * run->chunks;
        const float slope = model->slopes ? model->slopes[kv_head * group + head] : 0;
        weigh(run->scores + at * CHUNK, count, scale, slope, position - from, run->shares + 2 * at);
        memset(run->parts + at * wide, 0, (size_t)wide * sizeof(float));
    }
    for (int64_t i = 0; i < count; i += ROWS, values += stride) {
        fetch(run, values, count - i < ROWS ? count - i : ROWS, fetched);
        for (int64_t head = 0; head < group; head++) {
            const int64_t at = first + head * run->chunks;
            run->leaves->mix(run->scores + at * CHUNK + i, fetched, wide, run->parts + at * wide);
        }
    }
}

/* Items are [rows at once][kv_heads][chunks]. */
INLINE void attend_body(const void *context, int64_t first, int64_t end) {
    const Run *run = context;
    const int64_t kv_heads = run->model->kv_heads;
    for (int64_t item = first; item < end; item++) {
        const int64_t chunk = item % run->chunks, kv_head = item / run->chunks % kv_heads;
        const int64_t row = item / run->chunks / kv_heads;
        if (chunk * CHUNK <= run->step->start + run->first_row + row) attend_chunk(run, row, kv_head, chunk);
    }
}

/* A head's chunks, weighed by their shares. */
INLINE void merge_head(const Run *run, int64_t at, int64_t chunks, float *restrict to) {
    const int64_t size = run->model->head_size;
    const float *shares = run->shares + 2 * at;
    float highest = shares[0], sum = 0;
    for (int64_t chunk = 1; chunk < chunks; chunk++)
        highest = shares[2 * chunk] > highest ? shares[2 * chunk] : highest;
    memset(to, 0, (size_t)size * sizeof *to);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const float *restrict part = run->parts + (at + chunk) * run->wide;
        Lanes weights = {shares[2 * chunk] - highest};
        exponentials(&weights);
        const float weight = weights[0];
        sum += weight * shares[2 * chunk + 1];
        for (int64_t i = 0; i < size; i++) to[i] += weight * part[i];
    }
    for (int64_t i = 0; i < size; i++) to[i] /= sum;
}

INLINE void merge_body(const void *context, int64_t first, int64_t end) {
    const Run *run = context;
    const int64_t heads = run->model->heads, size = run->model->head_size;
    for (int64_t i = first; i < end; i++) {
        const int64_t row = run->first_row + i, chunks = (run->step->start + row) / CHUNK + 1;
        float *to = run->attended + row * heads * size;
        for (int64_t head = 0; head < heads; head++)
            merge_head(run, (i * heads + head) * run->chunks, chunks, to + head * size);
        round_row(to, heads * size, &run->rows[row]);
    }
}

/* silu(gate) * up, or GELU in its form with tanh: x * (1 + tanh u) / 2 is x / (1 + e^-2u). */
INLINE void activate_lanes(int gated, const float *gate, const float *up, float *to, int64_t count) {
    Lanes x = {0}, other = {0};
    memcpy(&x, gate, (size_t)count * sizeof *gate);
    memcpy(&other, up, (size_t)count * sizeof *up);
    const Lanes u = (x + x * x * x * 0x1.6e4e26p-5f) * 0x1.988454p-1f; /* .044715, the root of 2 / pi */
    Lanes falling = gated ? -x : u * -2;
    exponentials(&falling);
    x /= falling + 1;
    if (gated) x *= other;
    memcpy(to, &x, (size_t)count * sizeof *to);
}

INLINE void activate_body(const void *context, int64_t first, int64_t end) {
    const Run *run = context;
    const int64_t inner = run->model->inner, gates = run->layer->gate.rows;
    const int64_t ups = run->layer->up.rows ? run->layer->up.rows : gates;
    for (int64_t row = first; row < end; row++) {
        const float *gate = run->gate + row * gates, *up = run->model->gated ? run->up + row * ups : gate;
        float *active = run->active + row * inner;
        int64_t i = 0;
        if (run->model->gated)
            for (; i + ROWS <= inner; i += ROWS) activate_lanes(1, gate + i, up + i, active + i, ROWS);
        else
            for (; i + ROWS <= inner; i += ROWS) activate_lanes(0, gate + i, up + i, active + i, ROWS);
        if (i < inner) activate_lanes(run->model->gated != 0, gate + i, up + i, active + i, inner - i);
        round_row(active, inner, &run->rows[row]);
    }
}

/* A float32 matrix, row after row. */
typedef struct {
    const float *weights;
    int64_t rows, columns, stride;
    const float *x;
    int64_t count;
    const float *bias;
    float *y;
} FloatProduct;

static void multiply_floats(const void *context, int64_t first, int64_t end) {
    const FloatProduct *job = context;
    for (int64_t row = first; row < end; row++) {
        const float *weights = job->weights + row * job->columns;
        for (int64_t i = 0; i < job->count; i++) {
            const float *x = job->x + i * job->columns;
            float sums[ROWS] = {0};
            int64_t column = 0;
            for (; column + ROWS <= job->columns; column += ROWS)
                for (int lane = 0; lane < ROWS; lane++) sums[lane] += weights[column + lane] * x[column + lane];
            for (; column < job->columns; column++) sums[0] += weights[column] * x[column];
            const float total = total_of(sums);
            job->y[i * job->rows + row] = job->bias ? total + job->bias[row] : total;
        }
    }
}

static void widen(const uint16_t *from, float *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = half_to_float(from[i]);
}

static void narrow(const float *from, uint16_t *to, int64_t count) {
    for (int64_t i = 0; i < count; i++) to[i] = float_to_half(from[i]);
}

#define LEAF(name) \
    static void name(const void *context, int64_t first, int64_t end) { \
        name##_body(context, first, end); \
    }
LEAF(settle)
LEAF(turn)
LEAF(attend)
LEAF(merge)
LEAF(activate)
static const Leaves leaves_portable = {widen, narrow, score, mix, settle, turn, attend, merge, activate};

#if defined(__x86_64__)

AVX2 static void widen_avx2(const uint16_t *from, float *to, int64_t count) {
    int64_t i = 0;
    for (; i + ROWS <= count; i += ROWS) _mm256_storeu_ps(to + i, load_halves(from + i));
    for (; i < count; i++) to[i] = half_to_float(from[i]);
}

AVX2 static void narrow_avx2(const float *from, uint16_t *to, int64_t count) {
    const __m256 most = _mm256_set1_ps(65504), least = _mm256_set1_ps(-65504);
    int64_t i = 0;
    for (; i + ROWS <= count; i += ROWS) { /* what is no number passes both bounds */
        __m256 bounded = _mm256_max_ps(least, _mm256_min_ps(most, _mm256_loadu_ps(from + i)));
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(bounded, _MM_FROUND_TO_NEAREST_INT));
    }
    for (; i < count; i++) to[i] = float_to_half(from[i]);
}

AVX2 static void score_avx2(const float *query, const float *keys, int64_t wide, float *scores) {
    __m256 sums[ROWS];
    for (int key = 0; key < ROWS; key++) sums[key] = _mm256_setzero_ps();
    for (int64_t i = 0; i < wide; i += ROWS) {
        __m256 part = _mm256_loadu_ps(query + i);
        for (int key = 0; key < ROWS; key++)
            sums[key] = _mm256_fmadd_ps(part, _mm256_loadu_ps(keys + key * wide + i), sums[key]);
    }
    __m256 first = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
    __m256 second = _mm256_hadd_ps(_mm256_hadd_ps(sums[4], sums[5]), _mm256_hadd_ps(sums[6], sums[7]));
    __m256 low = _mm256_permute2f128_ps(first, second, 0x20), high = _mm256_permute2f128_ps(first, second, 0x31);
    _mm256_storeu_ps(scores, _mm256_add_ps(low, high));
}

AVX2 static void mix_avx2(const float *weights, const float *values, int64_t wide, float *to) {
    __m256 each[ROWS];
    for (int value = 0; value < ROWS; value++) each[value] = _mm256_set1_ps(weights[value]);
    for (int64_t i = 0; i < wide; i += ROWS) {
        __m256 sum = _mm256_loadu_ps(to + i);
        for (int value = 0; value < ROWS; value++)
            sum = _mm256_fmadd_ps(each[value], _mm256_loadu_ps(values + value * wide + i), sum);
        _mm256_storeu_ps(to + i, sum);
    }
}

#define LEAF_AVX2(name) \
    AVX2 static void name##_avx2(const void *context, int64_t first, int64_t end) { \
        name##_body(context, first, end); \
    }
LEAF_AVX2(settle)
LEAF_AVX2(turn)
LEAF_AVX2(attend)
LEAF_AVX2(merge)
LEAF_AVX2(activate)
static const Leaves leaves_avx2 = {widen_avx2, narrow_avx2,  score_avx2, mix_avx2, settle_avx2,
                                     turn_avx2,  attend_avx2,  merge_avx2, activate_avx2};

static const Leaves *choose_leaves(int level) {
    return level ? &leaves_avx2 : &leaves_portable;
}
#else
static const Leaves *choose_leaves(int level) {
    (void)level;
    return &leaves_portable;
}
#endif

/* -- Phases -- */

/* Items first .. end - 1 of a step's phase; with the helpers where that takes longer than telling them. */
static void do_phase(const Run *run, Task task, const void *context, int64_t items, int64_t weights_each) {
    if (!run->pool || items < 2 || items * weights_each < WORTH_SHARING) {
        task(context, 0, items);
        return;
    }
    int64_t least = LEAST_SHARE / weights_each;
    share_phase(run->pool, task, context, items, least > 1 ? least : 1);
}

/* One row after the other, or each for itself. */
static void do_rows(const Run *run, Task task, int64_t count) {
    do_phase(run, task, run, count, run->model->hidden);
}

/* The products of the same rows with up to three matrices, in items of a strip of a matrix's rows. */
typedef struct {
    int parts;
    struct {
        Task task;
        int64_t first, items, unit, limit; /* of items: the first, how many; the matrix's rows of an item, and in all */
        union {
            Product packed;
            HalfProduct halves;
            FloatProduct floats;
        } job;
    } part[3];
} Products;

static void multiply_parts(const void *context, int64_t first, int64_t end) {
    const Products *products = context;
    for (int i = 0; i < products->parts; i++) {
        int64_t from = first - products->part[i].first, to = end - products->part[i].first;
        from = from > 0 ? from : 0;
        to = to < products->part[i].items ? to : products->part[i].items;
        if (from >= to) continue;
        from *= products->part[i].unit;
        to *= products->part[i].unit;
        products->part[i].task(&products->part[i].job, from, to < products->part[i].limit ? to : products->part[i].limit);
    }
}

static void add_product(const Run *run, Products *products, const Weights *weights, const float *x, const Row *rows,
                        int64_t count, float *y) {
    if (weights->rows == 0) return;
    int i = products->parts++;
    int64_t strips = (weights->rows + STRIP - 1) / STRIP;
    products->part[i].first = i ? products->part[i - 1].first + products->part[i - 1].items : 0;
    products->part[i].items = strips;
    products->part[i].unit = is_packed(weights) ? 1 : STRIP;
    products->part[i].limit = is_packed(weights) ? strips : weights->rows;
    if (is_packed(weights)) {
        Matrix matrix = {(int)weights->bits, weights->rows, (weights->columns + GROUP - 1) / GROUP, weights->values,
                         weights->scales, weights->minimums};
        products->part[i].task = multiply_strips;
        products->part[i].job.packed = (Product){matrix, STRIPS[run->level], count, rows, weights->bias, y};
    } else if (weights->bits == 16) {
        products->part[i].task = MULTIPLY_HALVES[run->level];
        products->part[i].job.halves =
            (HalfProduct){weights->values, weights->rows, weights->columns, x, count, weights->bias, y};
    } else {
        products->part[i].task = multiply_floats;
        products->part[i].job.floats =
            (FloatProduct){weights->values, weights->rows, weights->columns, weights->columns, x, count, weights->bias, y};
    }
}

static void do_products(const Run *run, const Products *products, int64_t columns, int64_t count) {
    const int last = products->parts - 1;
    do_phase(run, multiply_parts, products, products->part[last].first + products->part[last].items,
             STRIP * columns * count);
}

static void multiply_all(const Run *run, const Weights *const weights[3], float *const y[3], const float *x) {
    Products products;
    products.parts = 0;
    for (int i = 0; i < 3; i++)
        if (weights[i]) add_product(run, &products, weights[i], x, run->rows, run->step->count, y[i]);
    do_products(run, &products, weights[0]->columns, run->step->count);
}

static void attend_rows(Run *run) {
    const Model *model = run->model;
    const int64_t count = run->step->count, most = ROWS_AT_ONCE;
    for (run->first_row = 0; run->first_row < count; run->first_row += most) {
        int64_t rows = count - run->first_row < most ? count - run->first_row : most;
        do_phase(run, run->leaves->attend, run, rows * model->kv_heads * run->chunks,
                 2 * CHUNK * run->wide * model->heads / model->kv_heads);
        do_rows(run, run->leaves->merge, rows);
    }
}

static void settle_rows(Run *run, const Norm *norm, int settles) {
    run->norm = *norm;
    run->settles = settles;
    do_rows(run, run->leaves->settle, run->step->count);
}

static void do_layer(Run *run) {
    const Layer *layer = run->layer;
    settle_rows(run, &layer->before_attention, run->number > 0);
    multiply_all(run, (const Weights *[]){&layer->queries, &layer->keys, &layer->values},
                 (float *[]){run->queries, run->keys, run->values}, run->normed);
    do_rows(run, run->leaves->turn, run->step->count);
    attend_rows(run);
    multiply_all(run, (const Weights *[]){&layer->dense, NULL, NULL}, (float *[]){run->out, NULL, NULL}, run->attended);
    settle_rows(run, &layer->before_mlp, 1);
    multiply_all(run, (const Weights *[]){&layer->gate, &layer->up, NULL}, (float *[]){run->gate, run->up, NULL},
                 run->normed);
    do_rows(run, run->leaves->activate, run->step->count);
    multiply_all(run, (const Weights *[]){&layer->down, NULL, NULL}, (float *[]){run->out, NULL, NULL}, run->active);
}

/* A token's row of the embedding. */
static void embed(const Run *run, int64_t id, float *to) {
    const Weights *weights = &run->model->embedding;
    const int64_t columns = weights->columns, groups = (columns + GROUP - 1) / GROUP;
    if (weights->bits == 32) {
        memcpy(to, (const float *)weights->values + id * columns, (size_t)columns * sizeof *to);
    } else if (weights->bits == 16) {
        run->leaves->widen((const uint16_t *)weights->values + id * columns, to, columns);
    } else {
        for (int64_t column = 0; column < columns; column++) {
            const int64_t at = id / ROWS * groups + column / GROUP, row = id % ROWS, inside = column % GROUP;
            const uint8_t *group = (const uint8_t *)weights->values + at * ROWS * GROUP * weights->bits / 8;
            const int64_t lane = inside % (weights->bits == 8 ? GROUP : GROUP / 2), byte = (lane / 4 * ROWS + row) * 4 + lane % 4;
            const int level = weights->bits == 8 ? (int8_t)group[byte] : group[byte] >> (inside < GROUP / 2 ? 0 : 4) & 15;
            to[column] = (float)level * half_to_float(weights->scales[at * ROWS + row]);
            if (weights->minimums) to[column] += half_to_float(weights->minimums[at * ROWS + row]);
        }
    }
}

static void embed_rows(const Run *run) {
    const Model *model = run->model;
    for (int64_t row = 0; row < run->step->count; row++) {
        float *x = run->x + row * model->hidden, *to = model->after_embedding.weight ? run->out + row * model->hidden : x;
        embed(run, run->step->ids[row], to);
        if (to != x) normalise(&model->after_embedding, to, x, model->hidden);
    }
}

static void find_angles(const Run *run) {
    const Model *model = run->model;
    for (int64_t i = 0; i < run->step->count * model->sections * model->pairs; i++) {
        const int64_t pair = i % model->pairs, section = i / model->pairs % model->sections;
        const int64_t row = i / model->pairs / model->sections;
        const int64_t position = run->step->positions[section] + row * run->step->steps[section];
        const float angle = (float)position * run->step->frequencies[pair];
        run->cosines[i] = cosf(angle);
        run->sines[i] = sinf(angle);
    }
}

/* Room that is given away from its beginning; without a base it is only measured. */
typedef struct {
    char *base;
    int64_t used;
} Room;

static void *carve(Room *room, int64_t bytes) {
    void *found = room->base ? room->base + room->used : NULL;
    room->used += (bytes + 63) / 64 * 64;
    return found;
}

static int64_t most_of(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Lays the step's room out from `base` on, and returns its bytes. */
static int64_t arrange(Run *run, char *base) {
    const Model *model = run->model;
    const Layer *layer = model->layer;
    const int64_t count = run->step->count, size = sizeof(float), hidden = count * model->hidden * size;
    const int64_t rows_at_once = count < ROWS_AT_ONCE ? count : ROWS_AT_ONCE;
    Room room = {base, 0};
    run->wide = (model->head_size + ROWS - 1) / ROWS * ROWS;
    run->chunks = (run->step->start + count - 1) / CHUNK + 1;
    run->x = carve(&room, hidden);
    run->normed = carve(&room, hidden);
    run->out = carve(&room, hidden);
    run->queries = carve(&room, count * layer->queries.rows * size);
    run->keys = layer->keys.rows ? carve(&room, count * layer->keys.rows * size) : run->queries;
    run->values = layer->values.rows ? carve(&room, count * layer->values.rows * size) : run->queries;
    run->turned = carve(&room, count * model->heads * run->wide * size);
    run->attended = carve(&room, count * model->heads * model->head_size * size);
    run->gate = carve(&room, count * layer->gate.rows * size);
    run->up = layer->up.rows ? carve(&room, count * layer->up.rows * size) : base ? run->gate + model->inner : NULL;
    run->active = carve(&room, count * model->inner * size);
    run->cosines = carve(&room, count * model->sections * model->pairs * size);
    run->sines = carve(&room, count * model->sections * model->pairs * size);
    const int64_t heads = rows_at_once * model->heads * run->chunks;
    run->scores = carve(&room, heads * CHUNK * size);
    run->parts = carve(&room, heads * run->wide * size);
    run->shares = carve(&room, heads * 2 * size);
    const int64_t columns = most_of(most_of(model->hidden, model->inner), model->heads * model->head_size);
    const int64_t groups = (columns + GROUP - 1) / GROUP;
    run->rows = carve(&room, count * (int64_t)sizeof(Row));
    char *rounded = carve(&room, count * (int64_t)row_bytes(groups));
    if (base) place_rows(run->rows, count, groups, rounded);
    return room.used;
}

/* Bytes that a step needs beside the model and its cache. */
EXPORT int64_t quatrain_step_room(const Model *model, const Step *step) {
    Run run = {.model = model, .step = step};
    return arrange(&run, NULL);
}

EXPORT void quatrain_step(Pool *pool, int level, const Model *model, const Step *step) {
    Run run = {.model = model, .step = step, .leaves = choose_leaves(level), .level = level};
    arrange(&run, step->room);
    if (open_crew(pool)) run.pool = pool;
    embed_rows(&run);
    find_angles(&run);
    for (run.number = 0; run.number < model->layers; run.number++) {
        run.layer = &model->layer[run.number];
        do_layer(&run);
    }
    settle_rows(&run, &model->last, 1);
    const int64_t skipped = step->count - step->wanted;
    Products products;
    products.parts = 0;
    add_product(&run, &products, &model->head, run.normed + skipped * model->hidden, run.rows + skipped, step->wanted,
                step->logits);
    do_products(&run, &products, model->hidden, step->wanted);
    if (run.pool) close_crew(pool);
}
