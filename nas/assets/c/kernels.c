/* What kernels.h declares. With Arm's DSP instructions two products take one instruction. */

#include "kernels.h"

/* Takes the output by value: in registers it need not be read again after each byte is stored. */
static inline void put(int32_t sum, const Output to, int channel, int at, uint8_t *out)
{
    float value = (float)sum * to.scale[channel];
    if (to.offset)
        value += to.offset[channel];
    if (to.real)
        to.real[at] = value;
    else
        out[at] = rounded(value, to.zero, to.low, to.high);
}

static inline uint32_t word(const void *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

#ifdef __ARM_FEATURE_SIMD32
/* Bytes 0 and 2, or 1 and 3, of a word as two 16-bit numbers; sums of their products. */
#define PAIR(name, instruction)                                                                    \
    static inline int32_t name(uint32_t value)                                                     \
    {                                                                                              \
        int32_t pair;                                                                              \
        __asm__(instruction : "=r"(pair) : "r"(value));                                            \
        return pair;                                                                               \
    }
PAIR(even_unsigned, "uxtb16 %0, %1")
PAIR(odd_unsigned, "uxtb16 %0, %1, ror #8")
PAIR(even_signed, "sxtb16 %0, %1")
PAIR(odd_signed, "sxtb16 %0, %1, ror #8")

#define SUM(name, instruction)                                                                     \
    static inline int32_t name(int32_t a, int32_t b, int32_t sum)                                  \
    {                                                                                              \
        __asm__(instruction " %0, %1, %2, %0" : "+r"(sum) : "r"(a), "r"(b));                       \
        return sum;                                                                                \
    }
SUM(both, "smlad")
SUM(lower, "smlabb")
SUM(upper, "smlatt")
#endif

/* Four dot products of `length` (a multiple of 4) of two columns with two rows of weights. */
static inline void dots(const uint8_t *x0, const uint8_t *x1, const int8_t *w0, const int8_t *w1,
                        int length, int32_t sums[4])
{
    int32_t s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
    for (const int8_t *end = w0 + length; w0 < end; x0 += 4, x1 += 4, w0 += 4, w1 += 4) {
#ifdef __ARM_FEATURE_SIMD32
        uint32_t a = word(x0), b = word(x1), c = word(w0), d = word(w1);
        int32_t a0 = even_unsigned(a), a1 = odd_unsigned(a);
        int32_t b0 = even_unsigned(b), b1 = odd_unsigned(b);
        int32_t c0 = even_signed(c), c1 = odd_signed(c);
        s0 = both(a1, c1, both(a0, c0, s0));
        s1 = both(b1, c1, both(b0, c0, s1));
        c0 = even_signed(d), c1 = odd_signed(d);
        s2 = both(a1, c1, both(a0, c0, s2));
        s3 = both(b1, c1, both(b0, c0, s3));
#else
        for (int i = 0; i < 4; i++) {
            s0 += x0[i] * w0[i];
            s1 += x1[i] * w0[i];
            s2 += x0[i] * w1[i];
            s3 += x1[i] * w1[i];
        }
#endif
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
}

/* What the window sees at one output position as one column: in place where it is contiguous,
 * else gathered into `column`, zero points where it hangs over the edge. */
static inline const uint8_t *column_at(const Window *g, const uint8_t *x, int zero, int position,
                                       uint8_t *column)
{
    int top = position / g->out_width * g->stride_height - g->pad_top;
    int left = position % g->out_width * g->stride_width - g->pad_left;
    uint8_t *to = column;
    if (!column)
        return x + (top * g->width + left) * g->channels;
    for (int i = 0; i < g->kernel_height; i++) {
        int row = top + i * g->dilation_height;
        int inside = row >= 0 && row < g->height;
        int last = left + (g->kernel_width - 1) * g->dilation_width;
        if (inside && g->dilation_width == 1 && left >= 0 && last < g->width) {
            size_t size = (size_t)(g->kernel_width * g->channels);
            memcpy(to, x + (row * g->width + left) * g->channels, size);
            to += size;
            continue;
        }
        for (int j = 0, at = left; j < g->kernel_width; j++, at += g->dilation_width) {
            if (inside && at >= 0 && at < g->width)
                memcpy(to, x + (row * g->width + at) * g->channels, (size_t)g->channels);
            else
                memset(to, zero, (size_t)g->channels);
            to += g->channels;
        }
    }
    return column;
}

void convolution(const Window *g, const uint8_t *x, int zero, const int8_t *weights,
                        int length, const Output *output, uint8_t *columns, uint8_t *out)
{
    const Output to = *output;
    int positions = g->out_height * g->out_width, channels = g->out_channels;
    for (int p = 0; p < positions; p += 2) {
        int second = p + 1 < positions;
        const uint8_t *x0 = column_at(g, x, zero, p, columns);
        const uint8_t *x1 = second ? column_at(g, x, zero, p + 1, columns ? columns + length : NULL)
                                   : x0;
        const int8_t *w = weights;
        int at = p * channels;
        for (int c = 0; c < channels; c += 2, at += 2, w += 2 * length) {
            int next = c + 1 < channels;
            int32_t b0 = to.bias[c], b1 = next ? to.bias[c + 1] : 0;
            int32_t sums[4] = {b0, b0, b1, b1};
            dots(x0, x1, w, next ? w + length : w, length, sums);
            put(sums[0], to, c, at, out);
            if (second)
                put(sums[1], to, c, at + channels, out);
            if (next)
                put(sums[2], to, c + 1, at + 1, out);
            if (next && second)
                put(sums[3], to, c + 1, at + channels + 1, out);
        }
    }
}

void depthwise(const Window *g, int first_row, const uint8_t *x, int zero,
                      const int8_t *weights, const Output *output, const uint8_t **taps, uint8_t *edge,
                      uint8_t *out)
{
    const Output to = *output;
    int channels = g->channels, count = g->kernel_height * g->kernel_width, at = 0;
    memset(edge, zero, (size_t)channels);
    for (int p = 0; p < g->out_height * g->out_width; p++) {
        int top = (first_row + p / g->out_width) * g->stride_height - g->pad_top;
        int left = p % g->out_width * g->stride_width - g->pad_left;
        const uint8_t **tap = taps;
        for (int i = 0, row = top; i < g->kernel_height; i++, row += g->dilation_height)
            for (int j = 0, col = left; j < g->kernel_width; j++, col += g->dilation_width) {
                int inside = row >= 0 && row < g->height && col >= 0 && col < g->width;
                *tap++ = inside ? x + (row * g->width + col) * channels : edge;
            }
        int c = 0;
#ifdef __ARM_FEATURE_SIMD32
        for (; c + 4 <= channels; c += 4, at += 4) {
            const int8_t *w = weights + c;
            int32_t s0 = to.bias[c], s1 = to.bias[c + 1];
            int32_t s2 = to.bias[c + 2], s3 = to.bias[c + 3];
            for (tap = taps; tap < taps + count; tap++, w += channels) {
                uint32_t a = word(*tap + c), b = word(w);
                int32_t a0 = even_unsigned(a), a1 = odd_unsigned(a);
                int32_t b0 = even_signed(b), b1 = odd_signed(b);
                s0 = lower(a0, b0, s0), s2 = upper(a0, b0, s2);
                s1 = lower(a1, b1, s1), s3 = upper(a1, b1, s3);
            }
            put(s0, to, c, at, out), put(s1, to, c + 1, at + 1, out);
            put(s2, to, c + 2, at + 2, out), put(s3, to, c + 3, at + 3, out);
        }
#endif
        for (; c < channels; c++, at++) {
            int32_t sum = to.bias[c];
            for (int i = 0; i < count; i++)
                sum += taps[i][c] * weights[i * channels + c];
            put(sum, to, c, at, out);
        }
    }
}

void float_convolution(const Window *g, int groups, const float *real, const uint8_t *x,
                              float step, int zero, const float *weights, const Output *to,
                              uint8_t *out)
{
    int share = g->channels / groups, wide = g->out_channels / groups, at = 0;
    for (int p = 0; p < g->out_height * g->out_width; p++) {
        int top = p / g->out_width * g->stride_height - g->pad_top;
        int left = p % g->out_width * g->stride_width - g->pad_left;
        const float *w = weights;
        for (int c = 0; c < g->out_channels; c++, at++) {
            float sum = to->offset[c];
            for (int i = 0; i < g->kernel_height; i++)
                for (int j = 0; j < g->kernel_width; j++, w += share) {
                    int row = top + i * g->dilation_height, col = left + j * g->dilation_width;
                    int from = (row * g->width + col) * g->channels + c / wide * share;
                    if (row < 0 || row >= g->height || col < 0 || col >= g->width)
                        continue;
                    for (int k = 0; k < share; k++)
                        sum += w[k] * (real ? real[from + k] : (float)(x[from + k] - zero) * step);
                }
            if (to->real)
                to->real[at] = sum;
            else
                out[at] = rounded(sum / to->scale[0], to->zero, to->low, to->high);
        }
    }
}

void global_mean(int positions, int channels, const uint8_t *x, const Output *to,
                        uint8_t *out)
{
    for (int c = 0; c < channels; c++) {
        int32_t sum = to->bias[0];
        for (int p = 0; p < positions; p++)
            sum += x[p * channels + c];
        float value = (float)sum * to->scale[0];
        if (to->real)
            to->real[c] = value;
        else
            out[c] = rounded(value, to->zero, to->low, to->high);
    }
}

void window_mean(const Window *g, const uint8_t *x, float step, int zero, int count_pads,
                        const Output *to, uint8_t *out)
{
    int at = 0;
    for (int p = 0; p < g->out_height * g->out_width; p++) {
        int top = p / g->out_width * g->stride_height - g->pad_top;
        int left = p % g->out_width * g->stride_width - g->pad_left;
        for (int c = 0; c < g->channels; c++, at++) {
            float sum = 0.0f;
            int count = 0;
            for (int row = top; row < top + g->kernel_height; row++)
                for (int col = left; col < left + g->kernel_width; col++) {
                    if (row < 0 || row >= g->height || col < 0 || col >= g->width)
                        continue;
                    sum += (float)(x[(row * g->width + col) * g->channels + c] - zero) * step;
                    count++;
                }
            if (count_pads)
                count = g->kernel_height * g->kernel_width;
            out[at] = rounded(sum / (float)count / to->scale[0], to->zero, to->low, to->high);
        }
    }
}

void window_maximum(const Window *g, const uint8_t *x, uint8_t *out)
{
    for (int p = 0; p < g->out_height * g->out_width; p++) {
        int top = p / g->out_width * g->stride_height - g->pad_top;
        int left = p % g->out_width * g->stride_width - g->pad_left;
        for (int c = 0; c < g->channels; c++) {
            int most = 0;
            for (int row = top; row < top + g->kernel_height; row++)
                for (int col = left; col < left + g->kernel_width; col++) {
                    if (row < 0 || row >= g->height || col < 0 || col >= g->width)
                        continue;
                    int value = x[(row * g->width + col) * g->channels + c];
                    most = value > most ? value : most;
                }
            *out++ = (uint8_t)most;
        }
    }
}
