/* Runs products of the kernels where Python does not: a program for another processor, under an emulator.
 *
 * Standard input: int32 bits (4, 8 or 16), rows, columns, count; then blocks, scales and minimums (or the halves), x and
 * bias. Standard output: for every level of the processor its number, int32, and y, float32 [count][rows].
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct Pool Pool;
int quatrain_levels(void);
Pool *quatrain_open(int threads);
int quatrain_multiply(Pool *pool, int level, int bits, int64_t rows, int64_t columns, const uint8_t *blocks,
                      const uint16_t *scales, const uint16_t *minimums, const float *x, int64_t count,
                      const float *bias, float *y);
void quatrain_multiply_halves(Pool *pool, int level, int64_t rows, int64_t columns, const uint16_t *weights,
                              const float *x, int64_t count, const float *bias, float *y);

static void *taken(int64_t bytes) {
    void *room = malloc((size_t)bytes);
    if (!room || fread(room, 1, (size_t)bytes, stdin) != (size_t)bytes) exit(1);
    return room;
}

int main(void) {
    int32_t *sizes = taken(4 * sizeof *sizes);
    int bits = sizes[0];
    int64_t rows = sizes[1], columns = sizes[2], count = sizes[3];
    int64_t groups = (rows + 7) / 8 * ((columns + 31) / 32); /* of eight rows */
    void *weights = taken(bits == 16 ? rows * columns * 2 : groups * 32 * bits);
    uint16_t *scales = bits == 16 ? NULL : taken(groups * 16), *minimums = bits == 4 ? taken(groups * 16) : NULL;
    float *x = taken(count * columns * 4), *bias = taken(rows * 4), *y = malloc((size_t)(count * rows) * sizeof *y);
    Pool *pool = quatrain_open(3);
    if (!y) return 1;
    for (int32_t level = 0; level < 16; level++) {
        if (!(quatrain_levels() >> level & 1)) continue;
        if (bits == 16) quatrain_multiply_halves(pool, level, rows, columns, weights, x, count, bias, y);
        else if (quatrain_multiply(pool, level, bits, rows, columns, weights, scales, minimums, x, count, bias, y)) return 1;
        fwrite(&level, sizeof level, 1, stdout);
        fwrite(y, sizeof *y, (size_t)(count * rows), stdout);
    }
    return 0;
}
