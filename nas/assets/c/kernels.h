/* Integer kernels for feature maps in height x width x channel order. C99, no heap, no doubles.
 *
 * Activations are uint8 with a zero point, weights int8. Every sum is an exact int32; a result is
 * rescaled in float and rounded half to even, as ONNX Runtime does, so both give the same bytes.
 * Compile with -ffp-contract=off: a fused multiply-add would round differently. */

#ifndef KERNELS_H
#define KERNELS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* A window that slides over a map; pads are those before the first row and column. */
typedef struct {
    int height, width, channels;
    int out_height, out_width, out_channels;
    int kernel_height, kernel_width, stride_height, stride_width;
    int dilation_height, dilation_width, pad_top, pad_left;
} Window;

/* How a sum becomes a result: (sum + bias) * scale + offset, per channel; offset may be NULL.
 * A uint8 result has its zero point added and is held between low and high; the results of a
 * layer that stays in float go to `real`, which is NULL otherwise. */
typedef struct {
    const int32_t *bias;
    const float *scale, *offset;
    int zero, low, high;
    float *real;
} Output;

/* `value` to the nearest integer, ties to even, plus `zero`, within low and high. The sum with
 * 1.5 * 2^23 has the integer in its last bits, and its bit pattern grows with the value. */
static inline uint8_t rounded(float value, int zero, int low, int high)
{
    const int32_t base = 0x4B400000;
    int32_t bits;
    value += 12582912.0f;
    memcpy(&bits, &value, sizeof bits);
    if (bits < base + low - zero)
        return (uint8_t)low;
    if (bits > base + high - zero)
        return (uint8_t)high;
    return (uint8_t)(bits - base + zero);
}

/* Convolution. Weights are [out_channels][length], rows filled up with zeros to a `length` that
 * divides by 4. `columns` has room for two columns, or is NULL if the kernel is 1x1 without pads
 * and the channels divide by 4. */
void convolution(const Window *g, const uint8_t *x, int zero, const int8_t *weights,
                        int length, const Output *output, uint8_t *columns, uint8_t *out);

/* Depthwise convolution of output rows from `first_row` on. Weights are [taps][channels];
 * `taps` has room for one pointer per tap and `edge` for one position, seen beyond the edges. */
void depthwise(const Window *g, int first_row, const uint8_t *x, int zero,
                      const int8_t *weights, const Output *output, const uint8_t **taps, uint8_t *edge,
                      uint8_t *out);

/* Convolution in float with groups: weights [out_channels][taps][channels / groups]; values are
 * read from `real`, or from bytes `x` as (x - zero) * step if `real` is NULL. */
void float_convolution(const Window *g, int groups, const float *real, const uint8_t *x,
                              float step, int zero, const float *weights, const Output *to,
                              uint8_t *out);

/* Mean of each channel over all positions; `bias` of the output is -zero point * positions. */
void global_mean(int positions, int channels, const uint8_t *x, const Output *to,
                        uint8_t *out);

/* Means over windows; places beyond the edge count as 0 if `count_pads`, else not at all. */
void window_mean(const Window *g, const uint8_t *x, float step, int zero, int count_pads,
                        const Output *to, uint8_t *out);

void window_maximum(const Window *g, const uint8_t *x, uint8_t *out);

#endif
