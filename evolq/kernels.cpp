// What a transformer computes on 8-bit codes, row by row in the cache: attention (queries x keys,
// softmax, its codes, codes x values), linear layers with what follows (GELU, a residual, codes), and
// LayerNorms; the codes of weights; errors of scales; and fake quantization with its gradient. Needs
// AVX-512 VNNI, and uses AMX where it is compiled with EVOLQ_TILES; `native.py` builds it. Sums of
// products are exact, and a row is computed by itself: results depend on neither threads nor batches.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t LANES = 16;  // int32 or float32 in a vector

int64_t padded(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// The first `count` of a vector, which may be more than it has.
__mmask16 first_lanes(int64_t count) { return count < LANES ? (1u << count) - 1 : 0xffff; }

#ifdef EVOLQ_TILES

constexpr int64_t ROWS = 32;  // two tiles, by two of columns: four tiles of sums of eight

// So many fours of terms operands are to have, of which tiles take 16; those of columns that are too
// many are 0.
int64_t fours_of(int64_t terms) { return padded(terms, 64) / 4; }

// Gives tiles their shape, for this thread: 16 rows of 64 bytes.
void begin_products() {
    // no local variable: GCC 12 says of the instruction that it reads 8 bytes, and leaves out the rest
    static constexpr struct alignas(64) {
        uint8_t palette = 1, begun = 0, nothing[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } SHAPES{};
    _tile_loadconfig(&SHAPES);
}

void end_products() { _tile_release(); }

// out[r][n] = start[n] + sum over k of a[r][k] * b[n][k], for ROWS rows and `columns`, which LANES
// divides. b is [k / 4][n][4], with `stride` bytes from four to four. `SIGNED` says whether codes in a
// are.
template <bool SIGNED = false>
void multiply(const void* a, int64_t a_stride, const int8_t* b, int64_t stride, int64_t columns,
              int64_t terms, const int32_t* start, int32_t* out, int64_t out_stride) {
    asm volatile("" ::: "memory");  // GCC does not say that loads of tiles read memory
    const int64_t fours = fours_of(terms);
    const auto* rows = static_cast<const int8_t*>(a);
#define MULTIPLY(sums, left, right)               \
    if (SIGNED) _tile_dpbssd(sums, left, right);  \
    else _tile_dpbusd(sums, left, right)
    for (int64_t n = 0; n < columns; n += 2 * LANES) {
        const bool two = n + LANES < columns;
        _tile_loadd(0, start + n, 0);  // the same for all rows
        _tile_loadd(1, start + n, 0);
        if (two) {
            _tile_loadd(2, start + n + LANES, 0);
            _tile_loadd(3, start + n + LANES, 0);
        }
        for (int64_t four = 0; four < fours; four += 16) {
            const int8_t* right = b + four * stride + 4 * n;
            _tile_loadd(4, rows + 4 * four, a_stride);
            _tile_loadd(5, rows + ROWS / 2 * a_stride + 4 * four, a_stride);
            _tile_loadd(6, right, stride);
            MULTIPLY(0, 4, 6);
            MULTIPLY(1, 5, 6);
            if (!two) continue;
            _tile_loadd(7, right + 4 * LANES, stride);
            MULTIPLY(2, 4, 7);
            MULTIPLY(3, 5, 7);
        }
        _tile_stored(0, out + n, 4 * out_stride);
        _tile_stored(1, out + ROWS / 2 * out_stride + n, 4 * out_stride);
        if (!two) continue;
        _tile_stored(2, out + n + LANES, 4 * out_stride);
        _tile_stored(3, out + ROWS / 2 * out_stride + n + LANES, 4 * out_stride);
    }
#undef MULTIPLY
}

#else

constexpr int64_t ROWS = 6;  // with 4 vectors of columns: 24 sums of 32 registers

// So many fours of terms operands are to have.
int64_t fours_of(int64_t terms) { return padded(terms, 4) / 4; }

void begin_products() {}
void end_products() {}

// out[r][n] = start[n] + sum over k of a[r][k] * b[n][k], for ROWS rows and C vectors of columns. Terms
// lie in fours, as vpdpbusd reads them: b is [k / 4][n][4], with `stride` bytes from four to four.
template <int C>
void multiply(const uint8_t* a, int64_t a_stride, const int8_t* b, int64_t stride, int64_t fours,
              const int32_t* start, int32_t* out, int64_t out_stride) {
    __m512i sums[ROWS][C];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) sums[r][c] = _mm512_loadu_si512(start + LANES * c);
    for (int64_t k = 0; k < fours; ++k) {
        __m512i columns[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) columns[c] = _mm512_loadu_si512(b + k * stride + 64 * c);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            int32_t four;
            std::memcpy(&four, a + r * a_stride + 4 * k, 4);
            const __m512i row = _mm512_set1_epi32(four);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], row, columns[c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            _mm512_storeu_si512(out + r * out_stride + LANES * c, sums[r][c]);
}

// The same for any number of columns that LANES divides.
void multiply(const uint8_t* a, int64_t a_stride, const int8_t* b, int64_t stride, int64_t columns,
              int64_t terms, const int32_t* start, int32_t* out, int64_t out_stride) {
    const int64_t fours = fours_of(terms);
    int64_t n = 0;
    for (; n + 4 * LANES <= columns; n += 4 * LANES)
        multiply<4>(a, a_stride, b + 4 * n, stride, fours, start + n, out + n, out_stride);
    for (; n < columns; n += LANES)
        multiply<1>(a, a_stride, b + 4 * n, stride, fours, start + n, out + n, out_stride);
}

#endif

// out[n] = sum over k of b[n][k].
void add_up(const int8_t* b, int64_t columns, int64_t fours, int32_t* out) {
    for (int64_t n = 0; n < columns; n += LANES) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t k = 0; k < fours; ++k)
            sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1),
                                      _mm512_loadu_si512(b + 4 * (k * columns + n)));
        _mm512_storeu_si512(out + n, sum);
    }
}

// out[n][t] = rows[t][n], for four rows of `columns` bytes.
void interleave(const int8_t* const rows[4], int64_t columns, int8_t* out) {
    for (int64_t n = 0; n < columns; n += 16) {
        const auto row = [&](int t) {
            return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[t] + n));
        };
        const __m128i low[2] = {_mm_unpacklo_epi8(row(0), row(1)), _mm_unpacklo_epi8(row(2), row(3))};
        const __m128i high[2] = {_mm_unpackhi_epi8(row(0), row(1)),
                                 _mm_unpackhi_epi8(row(2), row(3))};
        __m128i* to = reinterpret_cast<__m128i*>(out + 4 * n);
        _mm_storeu_si128(to, _mm_unpacklo_epi16(low[0], low[1]));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low[0], low[1]));
        _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high[0], high[1]));
        _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high[0], high[1]));
    }
}

// Columns of a matrix that are multiplied at a time.
constexpr int64_t PANEL = 4 * LANES;

// A matrix (terms, columns) as `multiply` reads it, panel after panel; 4 divides terms.
std::vector<int8_t> pack(const int8_t* matrix, int64_t terms, int64_t columns) {
    const int64_t bytes = 4 * fours_of(terms);
    std::vector<int8_t> packed(bytes * columns);
    for (int64_t n = 0; n < columns; n += PANEL) {
        const int64_t width = std::min(PANEL, columns - n);
        for (int64_t k = 0; k < terms; k += 4) {
            const int8_t* four[4];
            for (int64_t t = 0; t < 4; ++t) four[t] = matrix + (k + t) * columns + n;
            interleave(four, width, &packed[bytes * n + k * width]);
        }
    }
    return packed;
}

// The sum of all lanes, of int32.
int64_t sum_of_lanes(__m512i sums) {
    const __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(sums));
    const __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(sums, 1));
    return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
}

// Calls `each` with every place of a vector in `count` values and which of its lanes they fill.
template <class F>
inline __attribute__((always_inline)) void by_vectors(int64_t count, F each) {
    int64_t n = 0;
    for (; n + LANES <= count; n += LANES) each(n, __mmask16(0xffff));  // known when it is compiled
    if (n < count) each(n, first_lanes(count - n));
}

// The nearest whole numbers, of two the even one.
__m512 nearest(__m512 value) {
    return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Sixteen values of a polynomial, coefficients from the highest power on.
template <size_t N>
__m512 polynomial(__m512 x, const float (&coefficients)[N]) {
    __m512 sum = _mm512_set1_ps(coefficients[0]);
    for (size_t n = 1; n < N; ++n) sum = _mm512_fmadd_ps(sum, x, _mm512_set1_ps(coefficients[n]));
    return sum;
}

// 2^t for t <= 0, to 2e-7 of its value (polynomial: Cephes, exp2f).
__m512 power_of_two(__m512 t) {
    const __m512 whole = nearest(t);
    const __m512 rest = _mm512_sub_ps(t, whole);
    const __m512 sum =
        polynomial(rest, {1.535336188319500e-4f, 1.339887440266574e-3f, 9.618437357674640e-3f,
                          5.550332471162809e-2f, 2.402264791363012e-1f, 6.931472028550421e-1f, 1.0f});
    return _mm512_scalef_ps(sum, whole);
}

// P(x) - 1/2 of a standard normal distribution P for x >= 0, to 2e-7: a polynomial of degree 4 around
// each multiple of STEP, through its values at the Chebyshev nodes between the neighbours' middles.
struct Normal {
    static constexpr int DEGREE = 4;
    static constexpr float STEP = 0.375f;  // of the last one P is 1 in float32

    alignas(64) float coefficients[DEGREE + 1][LANES];  // from the highest power on

    Normal() {
        for (int64_t n = 0; n < LANES; ++n) {
            double nodes[DEGREE + 1], differences[DEGREE + 1], powers[DEGREE + 1] = {};
            for (int i = 0; i <= DEGREE; ++i) {
                nodes[i] = std::cos((2 * i + 1) * M_PI / (2 * DEGREE + 2)) / 2;
                differences[i] = std::erf((n + nodes[i]) * STEP * M_SQRT1_2) / 2;
            }
            for (int order = 1; order <= DEGREE; ++order)  // Newton's divided differences
                for (int i = DEGREE; i >= order; --i)
                    differences[i] = (differences[i] - differences[i - 1]) / (nodes[i] - nodes[i - order]);
            for (int i = DEGREE; i >= 0; --i) {  // powers (x - nodes[i]) + differences[i]
                for (int power = DEGREE; power > 0; --power)
                    powers[power] = powers[power - 1] - nodes[i] * powers[power];
                powers[0] = differences[i] - nodes[i] * powers[0];
            }
            for (int i = 0; i <= DEGREE; ++i) coefficients[i][n] = powers[DEGREE - i];
        }
    }

    __m512 operator()(__m512 x) const {
        const __m512 steps =
            _mm512_min_ps(_mm512_mul_ps(x, _mm512_set1_ps(1 / STEP)), _mm512_set1_ps(15.49f));
        // the last bits of the sum are those of the nearest whole number
        const __m512 large = _mm512_set1_ps(12582912.0f);  // 1.5 * 2^23
        const __m512 sum = _mm512_add_ps(steps, large);
        const __m512 rest = _mm512_sub_ps(steps, _mm512_sub_ps(sum, large));
        const auto at = [&](int i) {
            return _mm512_permutexvar_ps(_mm512_castps_si512(sum), _mm512_load_ps(coefficients[i]));
        };
        __m512 value = at(0);
        for (int i = 1; i <= DEGREE; ++i) value = _mm512_fmadd_ps(value, rest, at(i));
        return value;
    }
};

const Normal normal;

// x P(x), of a standard normal distribution P.
__m512 gelu(__m512 x) {
    const __m512 size = _mm512_abs_ps(x);
    return _mm512_fmadd_ps(size, normal(size), _mm512_mul_ps(x, _mm512_set1_ps(0.5f)));
}

struct Quantizer {
    __m512 zero, lower, upper;

    // Codes of values in units of the scale.
    __m512i codes(__m512 value) const {
        const __m512 code = _mm512_max_ps(_mm512_add_ps(value, zero), lower);
        return _mm512_cvtps_epi32(_mm512_min_ps(code, upper));
    }
};

// Quantizers of sixteen columns: what values are multiplied by, zero point, lowest and highest stored
// code. They are rows of a matrix with so many `columns`, of which c is the first of these.
struct Columns {
    __m512 unit, zero, lower, upper;

    Columns(const float* rows, int64_t columns, int64_t c) {
        unit = _mm512_loadu_ps(rows + c);
        zero = _mm512_loadu_ps(rows + columns + c);
        lower = _mm512_loadu_ps(rows + 2 * columns + c);
        upper = _mm512_loadu_ps(rows + 3 * columns + c);
    }

    // Writes the stored codes of values.
    void store(__m512 value, int8_t* to) const {
        const __m512 code = _mm512_max_ps(_mm512_fmadd_ps(value, unit, zero), lower);
        const __m512i stored = _mm512_cvtps_epi32(_mm512_min_ps(code, upper));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(stored));
    }
};

// Values: floats, or stored codes and a scale and a stored zero point of each column; or none.
struct Values {
    const float* floats;
    const int8_t* codes;
    const float* steps;
    int64_t columns;

    explicit operator bool() const { return floats || codes; }

    // Sixteen from `index` on, of columns from c on.
    __m512 load(int64_t index, int64_t c) const {
        if (floats) return _mm512_loadu_ps(floats + index);
        const __m128i stored = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + index));
        const __m512 value = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(stored));
        return _mm512_mul_ps(_mm512_sub_ps(value, _mm512_loadu_ps(steps + columns + c)),
                             _mm512_loadu_ps(steps + c));
    }
};

// Turns products of `height` queries with keys, `width` to a row of which `tokens` count, into codes of
// probabilities, `code_bytes` to a row, and sums of these. Each step is done for all rows before the
// next one, so that a processor need not wait for the sum of a row.
void softmax(int32_t* products, int64_t height, int64_t width, int64_t tokens, float slope,
             float scale, const Quantizer quantizer, uint8_t* codes, int64_t code_bytes,
             int32_t* counts) {
    __m512i largest[ROWS];
    __m512 unit[ROWS];
    for (int64_t r = 0; r < height; ++r) {
        __m512i own = _mm512_set1_epi32(INT32_MIN);
        by_vectors(tokens, [&](int64_t n, __mmask16 some) {
            const __m512i product = _mm512_loadu_si512(products + r * width + n);
            own = _mm512_mask_max_epi32(own, some, own, product);
        });
        largest[r] = _mm512_set1_epi32(_mm512_reduce_max_epi32(own));
    }
    for (int64_t r = 0; r < height; ++r) {
        __m512 total = _mm512_setzero_ps();
        by_vectors(tokens, [&](int64_t n, __mmask16 some) {
            int32_t* const at = products + r * width + n;
            const __m512i below = _mm512_sub_epi32(_mm512_loadu_si512(at), largest[r]);
            __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(below), _mm512_set1_ps(slope));
            // smaller powers are denormal: slow, and nothing beside the largest, which is 1
            const __m512 power = power_of_two(_mm512_max_ps(t, _mm512_set1_ps(-126.0f)));
            _mm512_storeu_ps(at, power);
            total = _mm512_mask_add_ps(total, some, total, power);
        });
        unit[r] = _mm512_set1_ps(1.0f / (_mm512_reduce_add_ps(total) * scale));
    }
    for (int64_t r = 0; r < height; ++r) {
        __m512i count = _mm512_setzero_si512();
        by_vectors(tokens, [&](int64_t n, __mmask16 some) {
            const __m512 power = _mm512_loadu_ps(products + r * width + n);
            const __m512i code = quantizer.codes(_mm512_mul_ps(power, unit[r]));
            count = _mm512_mask_add_epi32(count, some, count, code);
            _mm512_mask_cvtusepi32_storeu_epi8(codes + r * code_bytes + n, some, code);
        });
        counts[r] = _mm512_reduce_add_epi32(count);
    }
}

}  // namespace

// One head of one image after the other. Queries, keys and values are int8 (images, heads, tokens,
// depth), values with `columns` in place of depth, and have `strides` in bytes of images, heads and
// tokens, three for each; 4 divides depth, LANES columns. Zero points are in stored codes; that of
// keys adds the same to a whole row, which a softmax does not see. `slope` makes exponents of two of
// products of queries and keys; scale, zero, lower and upper are the quantizer's of probabilities.
// Written is (images, tokens, heads, columns): sums over codes minus zero points, times `factor`, or
// the codes of that, if `out_codes` is given, by the quantizers of heads x columns.
extern "C" void attention(const int8_t* queries, const int8_t* keys, const int8_t* values,
                          const int64_t* strides, int64_t images, int64_t heads, int64_t tokens,
                          int64_t depth, int64_t columns, int32_t query_zero, int32_t value_zero,
                          float slope, float scale, float zero, float lower, float upper,
                          float factor, const float* out_quantizers, float* out,
                          int8_t* out_codes, int64_t threads) {
    const int64_t rows = padded(tokens, ROWS), width = padded(tokens, LANES);
    const int64_t query_fours = fours_of(depth), query_bytes = 4 * query_fours;
    const int64_t fours = fours_of(tokens), code_bytes = 4 * fours;
    const int32_t probability_zero = zero;
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint8_t> query(rows * query_bytes), codes(ROWS * code_bytes);
        std::vector<int8_t> key(query_bytes * width), value(code_bytes * columns), nothing(columns);
        std::vector<int32_t> key_start(width), value_start(columns);
        std::vector<int32_t> products(ROWS * width), sums(ROWS * columns);
        const Quantizer quantizer{_mm512_set1_ps(zero), _mm512_set1_ps(lower),
                                  _mm512_set1_ps(upper)};
        begin_products();
#pragma omp for
        for (int64_t head = 0; head < images * heads; ++head) {
            const auto at = [&](const int8_t* from, int operand, int64_t token) {
                const int64_t* s = strides + 3 * operand;
                return from + head / heads * s[0] + head % heads * s[1] + token * s[2];
            };
            for (int64_t token = 0; token < tokens; ++token) {
                const int8_t *q = at(queries, 0, token), *k = at(keys, 1, token);
                uint8_t* unsigned_query = &query[token * query_bytes];
                for (int64_t d = 0; d < depth; ++d) unsigned_query[d] = uint8_t(q[d]) ^ 128;
                for (int64_t d = 0; d < depth; d += 4)
                    std::memcpy(&key[d * width + 4 * token], k + d, 4);
            }
            for (int64_t token = 0; token < tokens; token += 4) {
                const int8_t* rows[4];
                for (int64_t t = 0; t < 4; ++t)
                    rows[t] = token + t < tokens ? at(values, 2, token + t) : nothing.data();
                interleave(rows, columns, &value[token * columns]);
            }
            add_up(key.data(), width, query_fours, key_start.data());
            add_up(value.data(), columns, fours, value_start.data());
            for (int32_t& sum : key_start) sum *= -(query_zero + 128);
            for (int32_t& sum : value_start) sum *= -probability_zero;
            for (int64_t row = 0; row < tokens; row += ROWS) {
                const int64_t height = std::min(ROWS, tokens - row);
                multiply(&query[row * query_bytes], query_bytes, key.data(), 4 * width, width, depth,
                         key_start.data(), products.data(), width);
                int32_t counts[ROWS];
                softmax(products.data(), height, width, tokens, slope, scale, quantizer,
                        codes.data(), code_bytes, counts);
                multiply(codes.data(), code_bytes, value.data(), 4 * columns, columns, tokens,
                         value_start.data(), sums.data(), columns);
                const int64_t c = head % heads * columns, out_columns = heads * columns;
                const int64_t to = (head / heads * tokens + row) * out_columns + c;
                for (int64_t d = 0; d < columns; d += LANES) {
                    for (int64_t r = 0; r < height; ++r) {
                        const __m512i offset = _mm512_set1_epi32(
                            value_zero * (counts[r] - int32_t(tokens) * probability_zero));
                        const __m512i exact =
                            _mm512_sub_epi32(_mm512_loadu_si512(&sums[r * columns + d]), offset);
                        const __m512 value =
                            _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_set1_ps(factor));
                        const int64_t index = to + r * out_columns + d;
                        if (out_codes) {
                            const Columns quantizers(out_quantizers, out_columns, c + d);
                            quantizers.store(value, out_codes + index);
                        } else {
                            _mm512_storeu_ps(out + index, value);
                        }
                    }
                }
            }
        }
        end_products();
    }
}

namespace {

// A linear layer and what follows; see `linear`.
struct Layer {
    const float *weight_zero, *factor, *slope, *bias;
    bool sums_needed, with_gelu;
    Values more;
    int64_t columns;
    const float* quantizers;
    float* out;
    int8_t* codes;

    // Turns sums of products, PANEL to a row, into what is written from row `first` on, `width`
    // columns from n on. `counts` are the sums of rows of the input.
    void finish(const int32_t* sums, const int32_t* counts, int64_t first, int64_t height, int64_t n,
                int64_t width) const {
        const Layer own = *this;  // the compiler cannot know that writing codes leaves it as it is
        for (int64_t c = n; c < n + width; c += LANES) {
            const __m512 by = _mm512_loadu_ps(own.factor + c), constant = _mm512_loadu_ps(own.bias + c);
            const __m512 zero = _mm512_loadu_ps(own.weight_zero + c);
            const __m512 each = _mm512_loadu_ps(own.slope + c);
            const Columns quantizer(own.quantizers ? own.quantizers : own.factor,
                                    own.quantizers ? own.columns : 0, c);
            for (int64_t r = 0; r < height; ++r) {
                const int64_t index = (first + r) * own.columns + c;
                __m512 value = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + r * PANEL + c - n));
                __m512 plus = constant;
                if (own.sums_needed) {
                    const __m512 count = _mm512_set1_ps(counts[r]);
                    value = _mm512_fnmadd_ps(zero, count, value);
                    plus = _mm512_fmadd_ps(each, count, plus);
                }
                value = _mm512_fmadd_ps(value, by, plus);
                if (own.with_gelu) value = gelu(value);
                if (own.more) value = _mm512_add_ps(value, own.more.load(index, c));
                if (own.codes) quantizer.store(value, own.codes + index);
                else _mm512_storeu_ps(own.out + index, value);
            }
        }
    }
};

}  // namespace

// A linear layer, of int8 (rows, terms) and a matrix (terms, columns); 4 divides terms, LANES columns.
// `offset` to `bias`, one for each column, are those of `integer_ops.rescale`; `sums_needed` says
// whether sums of rows of the input are. Then GELU, if `with_gelu` says so, plus what is added: floats
// or codes (rows, columns). Written are floats, or codes if `codes` is given.
extern "C" void linear(const int8_t* input, const int8_t* matrix, const int32_t* offset,
                       const float* weight_zero, const float* factor, const float* slope,
                       const float* bias, int64_t sums_needed, int64_t with_gelu,
                       const float* added, const int8_t* added_codes, const float* added_steps,
                       int64_t rows, int64_t terms, int64_t columns, const float* out_quantizers,
                       float* out, int8_t* codes, int64_t threads) {
    const int64_t block_rows = padded(48, ROWS), bytes = 4 * fours_of(terms);
    const std::vector<int8_t> packed = pack(matrix, terms, columns);
    std::vector<int32_t> start(columns);
    for (int64_t n = 0; n < columns; n += PANEL)
        add_up(&packed[bytes * n], std::min(PANEL, columns - n), terms / 4, &start[n]);
    for (int64_t n = 0; n < columns; ++n) start[n] = -128 * start[n] - offset[n];
    const Layer layer{weight_zero, factor, slope, bias, sums_needed != 0,
                      with_gelu != 0, {added, added_codes, added_steps, columns}, columns,
                      out_quantizers, out, codes};
#pragma omp parallel num_threads(threads)
    {
        std::vector<uint8_t> block(block_rows * bytes);
        std::vector<int32_t> counts(block_rows), sums(ROWS * PANEL);
        begin_products();
#pragma omp for
        for (int64_t first = 0; first < rows; first += block_rows) {
            const int64_t height = std::min(block_rows, rows - first);
            for (int64_t r = 0; r < height; ++r) {
                const int8_t* from = input + (first + r) * terms;
                uint8_t* to = &block[r * bytes];
                for (int64_t k = 0; k < terms; ++k) to[k] = uint8_t(from[k]) ^ 128;
                int32_t count = 0;
                if (sums_needed)
                    for (int64_t k = 0; k < terms; ++k) count += from[k];
                counts[r] = count;
            }
            for (int64_t n = 0; n < columns; n += PANEL) {
                const int64_t width = std::min(PANEL, columns - n);
                for (int64_t row = 0; row < height; row += ROWS) {
                    multiply(&block[row * bytes], bytes, &packed[bytes * n], 4 * width, width,
                             terms, &start[n], sums.data(), PANEL);
                    layer.finish(sums.data(), &counts[row], first + row,
                                 std::min(ROWS, height - row), n, width);
                }
            }
        }
        end_products();
    }
}

// Codes of a LayerNorm of floats or codes (rows, columns); LANES divides columns.
extern "C" void layer_norm(const float* values, const int8_t* codes, const float* steps,
                           const float* weight, const float* bias, float epsilon,
                           const float* out_quantizers, int64_t rows, int64_t columns, int8_t* out,
                           int64_t threads) {
    const Values given{values, codes, steps, columns};
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> row(columns);
#pragma omp for
        for (int64_t r = 0; r < rows; ++r) {
            __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
            for (int64_t c = 0; c < columns; c += LANES) {
                const __m512 value = given.load(r * columns + c, c);
                _mm512_storeu_ps(&row[c], value);
                sum = _mm512_add_ps(sum, value);
            }
            const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / float(columns));
            for (int64_t c = 0; c < columns; c += LANES) {
                const __m512 centered = _mm512_sub_ps(_mm512_loadu_ps(&row[c]), mean);
                _mm512_storeu_ps(&row[c], centered);
                squares = _mm512_fmadd_ps(centered, centered, squares);
            }
            const float variance = _mm512_reduce_add_ps(squares) / float(columns);
            const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(variance + epsilon));
            for (int64_t c = 0; c < columns; c += LANES) {
                const __m512 value =
                    _mm512_fmadd_ps(_mm512_mul_ps(_mm512_loadu_ps(&row[c]), factor),
                                    _mm512_loadu_ps(weight + c), _mm512_loadu_ps(bias + c));
                const Columns quantizers(out_quantizers, columns, c);
                quantizers.store(value, out + r * columns + c);
            }
        }
    }
}

// The codes of a weight (outputs, terms), stored as (terms, outputs), and what turns sums of products
// into values, one number for each output: see `integer_ops.WeightCodes`. Codes lie between `lower`
// and `upper`; zero points are whole. Stored codes are codes minus zero point if all of these fit in
// int8, else codes minus `shift`. `bias` may be null. Returns whether sums of rows are needed.
extern "C" int64_t weight_codes(const float* weight, const float* scale, const float* zero_point,
                                float lower, float upper, int64_t shift, int64_t matched,
                                float epsilon, const float* bias, float input_scale,
                                float input_zero, int64_t outputs, int64_t terms, int8_t* matrix,
                                int32_t* offset, float* zero, float* factor, float* slope,
                                float* constant, int64_t threads) {
    const int64_t width = padded(terms, LANES);
    std::vector<int8_t> codes(outputs * width);
    std::vector<int64_t> sums(outputs);
    bool centered = true;
#pragma omp parallel for num_threads(threads) reduction(&& : centered)
    for (int64_t o = 0; o < outputs; ++o) {
        const float* row = weight + o * terms;
        const __m512 by = _mm512_set1_ps(scale[o]), first = _mm512_set1_ps(row[0]);
        const Quantizer quantizer{_mm512_set1_ps(zero_point[o]), _mm512_set1_ps(lower),
                                  _mm512_set1_ps(upper)};
        __m512i lowest = _mm512_set1_epi32(INT32_MAX), highest = _mm512_set1_epi32(INT32_MIN);
        __m512i sum = _mm512_setzero_si512();      // of int32
        __m512i squares = _mm512_setzero_si512();  // of int64
        __m512 total = _mm512_setzero_ps();
        by_vectors(terms, [&](int64_t k, __mmask16 some) {
            const __m512 value = _mm512_maskz_loadu_ps(some, row + k);
            total = _mm512_mask_add_ps(total, some, total, _mm512_sub_ps(value, first));
            const __m512i code =
                _mm512_maskz_mov_epi32(some, quantizer.codes(_mm512_div_ps(value, by)));
            lowest = _mm512_mask_min_epi32(lowest, some, lowest, code);
            highest = _mm512_mask_max_epi32(highest, some, highest, code);
            sum = _mm512_add_epi32(sum, code);
            const __m512i odd = _mm512_srli_epi64(code, 32);
            squares = _mm512_add_epi64(squares, _mm512_mul_epi32(code, code));
            squares = _mm512_add_epi64(squares, _mm512_mul_epi32(odd, odd));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(&codes[o * width + k]),
                             _mm512_cvtepi32_epi8(code));
        });
        sums[o] = sum_of_lanes(sum);
        const int64_t own_zero = zero_point[o];
        centered = centered && _mm512_reduce_min_epi32(lowest) - own_zero > -128 &&
                   _mm512_reduce_max_epi32(highest) - own_zero < 128;
        factor[o] = scale[o];
        slope[o] = 0;
        if (!matched) continue;
        const float shifted_mean = _mm512_reduce_add_ps(total) / terms;
        __m512 norm = _mm512_setzero_ps();
        by_vectors(terms, [&](int64_t k, __mmask16 some) {
            const __m512 value = _mm512_sub_ps(_mm512_maskz_loadu_ps(some, row + k), first);
            const __m512 rest =
                _mm512_maskz_sub_ps(some, value, _mm512_set1_ps(shifted_mean));
            norm = _mm512_fmadd_ps(rest, rest, norm);
        });
        const double freedom = std::max(int64_t(1), terms - 1);
        const double deviation = std::sqrt(_mm512_reduce_add_ps(norm) / freedom);
        // exact, so that the deviation of equal codes is 0
        const int64_t spread = terms * _mm512_reduce_add_epi64(squares) - sums[o] * sums[o];
        const double own_deviation = scale[o] * std::sqrt(spread / (freedom * terms));
        const double ratio = spread ? deviation / (own_deviation + epsilon) : 0;
        const double own_mean = scale[o] * (double(sums[o]) / terms - own_zero);
        factor[o] = scale[o] * ratio;
        slope[o] = double(row[0]) + shifted_mean - own_mean * ratio;
    }
    bool needed = false;
#pragma omp parallel for num_threads(threads) reduction(|| : needed)
    for (int64_t group = 0; group < outputs; group += 4) {
        std::vector<int8_t> rows(4 * width), four(4 * width);
        const int64_t count = std::min(int64_t(4), outputs - group);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t o = group + r, own_zero = zero_point[o];
            const int64_t less = centered ? own_zero : shift, rest = own_zero - less;
            for (int64_t k = 0; k < terms; ++k)
                rows[r * width + k] = uint8_t(codes[o * width + k]) - uint8_t(less);
            offset[o] = int64_t(input_zero) * (sums[o] - terms * own_zero);
            zero[o] = rest;
            factor[o] *= input_scale;
            slope[o] *= input_scale;
            constant[o] = (bias ? bias[o] : 0) - slope[o] * terms * input_zero;
            needed = needed || rest || slope[o] != 0;
        }
        const int8_t* each[4];
        for (int64_t r = 0; r < 4; ++r) each[r] = &rows[r * width];
        interleave(each, width, four.data());
        for (int64_t k = 0; k < terms; ++k)
            std::memcpy(matrix + k * outputs + group, &four[4 * k], count);
    }
    return needed;
}

// Sums of squared errors of each row of values (rows, columns), in units of its scale, at each of its
// zero points (choices, rows). Written are (choices, rows).
extern "C" void squared_errors(const float* values, const float* scale, const float* zero_points,
                               float lower, float upper, int64_t rows, int64_t columns,
                               int64_t choices, float* out, int64_t threads) {
    constexpr int64_t PART = 1024;  // in the cache, while all choices read them
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; ++r) {
        const __m512 by = _mm512_set1_ps(scale[r]);
        std::vector<double> sums(choices);
        float steps[PART], rounded[PART];
        for (int64_t first = 0; first < columns; first += PART) {
            const int64_t count = std::min(PART, columns - first);
            by_vectors(count, [&](int64_t n, __mmask16 some) {
                const __m512 value = _mm512_maskz_loadu_ps(some, values + r * columns + first + n);
                const __m512 step = _mm512_div_ps(value, by);
                _mm512_storeu_ps(steps + n, step);
                _mm512_storeu_ps(rounded + n, nearest(step));
            });
            for (int64_t choice = 0; choice < choices; ++choice) {
                const float zero = zero_points[choice * rows + r];
                const __m512 lowest = _mm512_set1_ps(lower - zero);
                const __m512 highest = _mm512_set1_ps(upper - zero);
                __m512 sum = _mm512_setzero_ps();
                by_vectors(count, [&](int64_t n, __mmask16 some) {
                    const __m512 code = _mm512_min_ps(
                        _mm512_max_ps(_mm512_loadu_ps(rounded + n), lowest), highest);
                    const __m512 error =
                        _mm512_maskz_sub_ps(some, code, _mm512_loadu_ps(steps + n));
                    sum = _mm512_fmadd_ps(error, error, sum);
                });
                sums[choice] += _mm512_reduce_add_ps(sum);
            }
        }
        for (int64_t choice = 0; choice < choices; ++choice) out[choice * rows + r] = sums[choice];
    }
}

namespace {

// Values in a row that are quantized, or a sum of which is made, at a time.
constexpr int64_t BLOCK = 4096;

// A uniform quantizer, step by step as PyTorch computes it: what is no number stays so.
struct Rounding {
    __m512 scale, zero, lower, upper;

    Rounding(float own_scale, float own_zero, float lowest, float highest)
        : scale(_mm512_set1_ps(own_scale)),
          zero(_mm512_set1_ps(own_zero)),
          lower(_mm512_set1_ps(lowest)),
          upper(_mm512_set1_ps(highest)) {}

    __m512 steps(__m512 value) const { return _mm512_add_ps(_mm512_div_ps(value, scale), zero); }

    __m512 code(__m512 steps) const {
        return nearest(_mm512_min_ps(upper, _mm512_max_ps(lower, steps)));
    }
};

}  // namespace

// Values (rows, columns) rounded to those that codes stand for; each row has a scale and a zero point.
extern "C" void fake_quantize(const float* values, const float* scales, const float* zeros,
                              float lower, float upper, int64_t rows, int64_t columns, float* out,
                              int64_t threads) {
    const int64_t blocks = padded(columns, BLOCK) / BLOCK;
#pragma omp parallel for num_threads(std::min(threads, rows * blocks))
    for (int64_t block = 0; block < rows * blocks; ++block) {
        const int64_t row = block / blocks, first = block % blocks * BLOCK;
        const int64_t at = row * columns + first;
        const Rounding rounding(scales[row], zeros[row], lower, upper);
        by_vectors(std::min(BLOCK, columns - first), [&](int64_t n, __mmask16 some) {
            const __m512 value = _mm512_maskz_loadu_ps(some, values + at + n);
            const __m512 code = rounding.code(rounding.steps(value));
            _mm512_mask_storeu_ps(out + at + n, some,
                                  _mm512_mul_ps(_mm512_sub_ps(code, rounding.zero), rounding.scale));
        });
    }
}

// The gradients of that, straight through the rounding, with respect to values, scales and zero points:
// see `quantizers.fake_quantize`. Sums are made block by block, whatever the number of threads.
extern "C" void fake_quantize_gradient(const float* gradients, const float* values,
                                       const float* scales, const float* zeros, float lower,
                                       float upper, int64_t rows, int64_t columns,
                                       float* of_values, float* of_scales, float* of_zeros,
                                       int64_t threads) {
    const int64_t blocks = padded(columns, BLOCK) / BLOCK;
    std::vector<float> scale_sums(rows * blocks), outside_sums(rows * blocks);
#pragma omp parallel for num_threads(std::min(threads, rows * blocks))
    for (int64_t block = 0; block < rows * blocks; ++block) {
        const int64_t row = block / blocks, first = block % blocks * BLOCK;
        const int64_t at = row * columns + first;
        const Rounding rounding(scales[row], zeros[row], lower, upper);
        __m512 scale_sum = _mm512_setzero_ps(), outside_sum = _mm512_setzero_ps();
        by_vectors(std::min(BLOCK, columns - first), [&](int64_t n, __mmask16 some) {
            const __m512 gradient = _mm512_maskz_loadu_ps(some, gradients + at + n);
            const __m512 steps = rounding.steps(_mm512_maskz_loadu_ps(some, values + at + n));
            const __mmask16 inside = _mm512_cmp_ps_mask(steps, rounding.lower, _CMP_GE_OQ) &
                                     _mm512_cmp_ps_mask(steps, rounding.upper, _CMP_LE_OQ);
            _mm512_mask_storeu_ps(of_values + at + n, some, _mm512_maskz_mov_ps(inside, gradient));
            // inside the error of rounding, outside the bound less the zero point
            const __m512 less = _mm512_mask_mov_ps(rounding.zero, inside, steps);
            scale_sum = _mm512_fmadd_ps(gradient, _mm512_sub_ps(rounding.code(steps), less), scale_sum);
            outside_sum = _mm512_mask_add_ps(outside_sum, ~inside, outside_sum, gradient);
        });
        scale_sums[block] = _mm512_reduce_add_ps(scale_sum);
        outside_sums[block] = _mm512_reduce_add_ps(outside_sum);
    }
    for (int64_t row = 0; row < rows; ++row) {
        double scale_sum = 0, outside_sum = 0;
        for (int64_t block = row * blocks; block < (row + 1) * blocks; ++block) {
            scale_sum += scale_sums[block];
            outside_sum += outside_sums[block];
        }
        of_scales[row] = scale_sum;
        of_zeros[row] = -scales[row] * outside_sum;
    }
}

// Stored codes of values with one quantizer.
extern "C" void encode(const float* values, float scale, float zero, float lower, float upper,
                       float shift, int64_t count, int8_t* out, int64_t threads) {
    const Quantizer quantizer{_mm512_set1_ps(zero), _mm512_set1_ps(lower), _mm512_set1_ps(upper)};
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < count; n += LANES) {
        const __mmask16 some = first_lanes(count - n);
        const __m512 value = _mm512_maskz_loadu_ps(some, values + n);
        const __m512i code = quantizer.codes(_mm512_div_ps(value, _mm512_set1_ps(scale)));
        const __m512i stored = _mm512_sub_epi32(code, _mm512_set1_epi32(int32_t(shift)));
        _mm512_mask_cvtepi32_storeu_epi8(out + n, some, stored);
    }
}

#ifdef EVOLQ_TILES

// Sums of products of int8 (rows, terms) and a matrix (terms, columns): int32 (rows, columns). 4
// divides terms, LANES columns.
extern "C" void product(const int8_t* left, const int8_t* matrix, int64_t rows, int64_t terms,
                        int64_t columns, int32_t* out, int64_t threads) {
    const int64_t bytes = 4 * fours_of(terms);
    const std::vector<int8_t> packed = pack(matrix, terms, columns);
#pragma omp parallel num_threads(threads)
    {
        std::vector<int8_t> block(ROWS * bytes);
        std::vector<int32_t> sums, nothing(PANEL);
        begin_products();
#pragma omp for
        for (int64_t first = 0; first < rows; first += ROWS) {
            const int64_t height = std::min(ROWS, rows - first);
            for (int64_t r = 0; r < height; ++r)
                std::memcpy(&block[r * bytes], left + (first + r) * terms, terms);
            int32_t* to = out + first * columns;
            if (height < ROWS) {
                sums.resize(ROWS * columns);
                to = sums.data();
            }
            for (int64_t n = 0; n < columns; n += PANEL) {
                const int64_t width = std::min(PANEL, columns - n);
                multiply<true>(block.data(), bytes, &packed[bytes * n], 4 * width, width, terms,
                               nothing.data(), to + n, columns);
            }
            if (height < ROWS) std::copy_n(to, height * columns, out + first * columns);
        }
        end_products();
    }
}

#endif
