/* The loops of an LSTM over time, for lstm.py, which says what the arguments are. Rows M, units H, columns of a gate's
   numbers 4H: output, input and forget gate, candidate. All arrays are contiguous. */

#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define VECTORS 4
#else
#define LANES 8
#define VECTORS 2
#endif
#define ROWS 4 /* ROWS x VECTORS sums are kept in registers */

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

/* sums[r][v] += a[r][k] * panel[k][v] over k, for `rows` rows and `vectors` vectors of columns. */
#define BLOCK(rows, vectors)                                                                   \
    {                                                                                          \
        Vector sums[rows][vectors];                                                            \
        for (int r = 0; r < rows; r++)                                                         \
            for (int v = 0; v < vectors; v++)                                                  \
                sums[r][v] = *(const Vector *)(out + r * columns + v * LANES);                 \
        for (long k = 0; k < inner; k++)                                                       \
            for (int v = 0; v < vectors; v++) {                                                \
                Vector column = *(const Vector *)(panel + (k * vectors + v) * LANES);          \
                for (int r = 0; r < rows; r++) sums[r][v] += a[r * inner + k] * column;        \
            }                                                                                  \
        for (int r = 0; r < rows; r++)                                                         \
            for (int v = 0; v < vectors; v++)                                                  \
                *(Vector *)(out + r * columns + v * LANES) = sums[r][v];                       \
    }

static void block_of_rows(long inner, long columns, const float *a, const float *panel, float *out)
    BLOCK(ROWS, VECTORS)

static void block_of_one_row(long inner, long columns, const float *a, const float *panel, float *out)
    BLOCK(1, VECTORS)

/* Puts b (inner, columns) panel by panel: so many columns as are summed up at once, then the rest of them. A panel's rows
   lie one after the other, so that it fits into the nearest cache. */
static void pack(long inner, long columns, const float *b, float *packed) {
    const long width = LANES * VECTORS;
    for (long j = 0; j < columns; j += width) {
        const long here = columns - j < width ? columns - j : width;
        for (long k = 0; k < inner; k++, packed += here) memcpy(packed, b + k * columns + j, here * sizeof(float));
    }
}

/* out (rows, columns) += a (rows, inner) times what was packed of (inner, columns). */
static void add_product(long rows, long inner, long columns, const float *a, const float *packed, float *out) {
    const long width = LANES * VECTORS, whole = columns - columns % width;
    for (long j = 0; j < whole; j += width) {
        const float *panel = packed + j * inner;
        long m = 0;
        for (; m + ROWS <= rows; m += ROWS)
            block_of_rows(inner, columns, a + m * inner, panel, out + m * columns + j);
        for (; m < rows; m++) block_of_one_row(inner, columns, a + m * inner, panel, out + m * columns + j);
    }
    const long rest = columns - whole;
    const float *panel = packed + whole * inner;
    for (long m = 0; m < rows; m++)
        for (long k = 0; k < inner && rest; k++)
            for (long j = 0; j < rest; j++) out[m * columns + whole + j] += a[m * inner + k] * panel[k * rest + j];
}

/* The minimax fit of Eigen and XLA, as in mlp.py; NaN stays NaN. */
static inline float tangent(float x) {
    x = x > 7.90531110763549805f ? 7.90531110763549805f : x;
    x = x < -7.90531110763549805f ? -7.90531110763549805f : x;
    const float s = x * x;
    float p = -2.76076847742355e-16f;
    p = p * s + 2.00018790482477e-13f;
    p = p * s - 8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    float q = 1.19825839466702e-06f;
    q = q * s + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return x * p / q;
}

static inline float sigmoid(float x) { return 0.5f + 0.5f * tangent(0.5f * x); }

/* `kept` (M, H) is what is remembered of `values`: nothing where an episode begins. */
static void keep(long rows, long size, const uint8_t *first, const float *values, float *kept) {
    for (long m = 0; m < rows; m++) {
        if (first[m])
            memset(kept + m * size, 0, size * sizeof(float));
        else if (kept != values)
            memcpy(kept + m * size, values + m * size, size * sizeof(float));
    }
}

/* Each x becomes tanh(scale * x), for a candidate, or with 0.5 the sigmoid of x, for a gate. */
static void squash(long count, float scale, float *restrict x) {
    const float half = scale == 1.0f ? 1.0f : 0.5f, shift = scale == 1.0f ? 0.0f : 0.5f;
    for (long u = 0; u < count; u++) x[u] = shift + half * tangent(scale * x[u]);
}

/* The cell becomes the next one, and `hidden` is what follows from it. */
static void step(long size, const float *restrict o, const float *restrict i, const float *restrict f,
                 const float *restrict g, float *restrict cell, float *restrict hidden) {
    for (long u = 0; u < size; u++) {
        cell[u] = f[u] * cell[u] + i[u] * g[u];
        hidden[u] = o[u] * tangent(cell[u]);
    }
}

void lstm_forward(long steps, long rows, long size, const float *turned, const uint8_t *first, const float *hidden,
                  const float *cell, float *gates, float *hiddens, float *cells, float *kept, float *packed) {
    const long all = rows * size;
    pack(size, 4 * size, turned, packed);
    for (long t = 0; t < steps; t++) {
        keep(rows, size, first, hidden, kept);
        add_product(rows, size, 4 * size, kept, packed, gates);
        keep(rows, size, first, cell, cells);
        for (long m = 0; m < rows; m++) {
            float *numbers = gates + 4 * m * size;
            squash(3 * size, 0.5f, numbers);
            squash(size, 1.0f, numbers + 3 * size);
            step(size, numbers, numbers + size, numbers + 2 * size, numbers + 3 * size, cells + m * size,
                 hiddens + m * size);
        }
        hidden = hiddens, cell = cells;
        first += rows, gates += 4 * all, hiddens += all, cells += all;
    }
}

/* From the gradient by a step's hidden, its own and `by_h` from the step after, and by_c by its cell, to the gradients
   by its four numbers, and by the cell before in by_c. by_h is 0 then. */
static void step_back(long size, const float *restrict o, const float *restrict i, const float *restrict f,
                      const float *restrict g, const float *restrict cell, const float *restrict before,
                      const float *restrict own, float *restrict by_h, float *restrict by_c, float *restrict to_o,
                      float *restrict to_i, float *restrict to_f, float *restrict to_g) {
    for (long u = 0; u < size; u++) {
        const float squashed = tangent(cell[u]), by = by_h[u] + own[u];
        const float by_cell = by_c[u] + by * o[u] * (1.0f - squashed * squashed);
        to_o[u] = by * squashed * o[u] * (1.0f - o[u]);
        to_i[u] = by_cell * g[u] * i[u] * (1.0f - i[u]);
        to_f[u] = by_cell * before[u] * f[u] * (1.0f - f[u]);
        to_g[u] = by_cell * i[u] * (1.0f - g[u] * g[u]);
        by_c[u] = by_cell * f[u];
        by_h[u] = 0.0f;
    }
}

void lstm_backward(long steps, long rows, long size, const float *weight, const uint8_t *first, const float *cell,
                   const float *cells, const float *gates, const float *by_hidden, float *by_numbers, float *after,
                   float *by_cell, float *before, float *packed) {
    const long all = rows * size;
    pack(4 * size, size, weight, packed);
    memset(after, 0, all * sizeof(float));
    memset(by_cell, 0, all * sizeof(float));
    for (long t = steps - 1; t >= 0; t--) {
        const float *old_cells = t > 0 ? cells + (t - 1) * all : cell;
        const uint8_t *begins = first + t * rows;
        keep(rows, size, begins, old_cells, before);
        for (long m = 0; m < rows; m++) {
            const long row = t * all + m * size;
            const float *o = gates + 4 * row;
            float *to = by_numbers + 4 * row;
            step_back(size, o, o + size, o + 2 * size, o + 3 * size, cells + row, before + m * size, by_hidden + row,
                      after + m * size, by_cell + m * size, to, to + size, to + 2 * size, to + 3 * size);
        }
        add_product(rows, 4 * size, size, by_numbers + 4 * t * all, packed, after);
        keep(rows, size, begins, after, after);
        keep(rows, size, begins, by_cell, by_cell);
    }
}
