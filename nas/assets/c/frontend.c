/* Waveform or features to a label. The front end is a log-mel spectrogram: windowed real FFT,
 * triangular mel bands, natural logarithm, optional slopes over five frames, normalisation. */

#include "classifier.h"
#include "frontend_tables.h"
#include "network.h"

#include <stdint.h>
#include <string.h>

#define HALF (FFT / 2)
#define RING (DELTAS ? 5 : 1) /* frames that slopes are taken of */

typedef struct {
    float re, im;
} Complex;

/* exp(-2 pi i k / FFT) for k below FFT; the table has the first half. */
static inline Complex turn(int k)
{
    int second = k >= HALF;
    const float *at = TURNS[second ? k - HALF : k];
    Complex unit = {second ? -at[0] : at[0], second ? -at[1] : at[1]};
    return unit;
}

static inline Complex product(Complex a, Complex b)
{
    Complex c = {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
    return c;
}

/* One Stockham step of radix 2 over `length` values in `stride` interleaved transforms. */
static void radix2(const Complex *from, Complex *to, int length, int stride)
{
    int part = length / 2;
    for (int p = 0; p < part; p++) {
        Complex unit = turn(2 * p * stride);
        for (int q = 0; q < stride; q++) {
            Complex a = from[q + stride * p], b = from[q + stride * (p + part)];
            Complex d = {a.re - b.re, a.im - b.im};
            to[q + stride * 2 * p].re = a.re + b.re;
            to[q + stride * 2 * p].im = a.im + b.im;
            to[q + stride * (2 * p + 1)] = product(d, unit);
        }
    }
}

static void radix4(const Complex *from, Complex *to, int length, int stride)
{
    int part = length / 4;
    for (int p = 0; p < part; p++) {
        Complex u1 = turn(2 * p * stride), u2 = turn(4 * p * stride), u3 = turn(6 * p * stride);
        for (int q = 0; q < stride; q++) {
            const Complex *x = from + q + stride * p;
            Complex a = x[0], b = x[stride * part], c = x[2 * stride * part];
            Complex d = x[3 * stride * part];
            Complex s = {a.re + c.re, a.im + c.im}, t = {a.re - c.re, a.im - c.im};
            Complex u = {b.re + d.re, b.im + d.im}, v = {b.im - d.im, d.re - b.re};
            Complex y1 = {t.re + v.re, t.im + v.im}, y2 = {s.re - u.re, s.im - u.im};
            Complex y3 = {t.re - v.re, t.im - v.im};
            Complex *y = to + q + stride * 4 * p;
            y[0].re = s.re + u.re, y[0].im = s.im + u.im;
            y[stride] = product(y1, u1);
            y[2 * stride] = product(y2, u2);
            y[3 * stride] = product(y3, u3);
        }
    }
}

/* The same for any radix, by definition. */
static void radix_any(const Complex *from, Complex *to, int length, int stride, int radix)
{
    int part = length / radix;
    for (int r = 0; r < radix; r++) {
        int step = FFT / radix * r;
        for (int p = 0; p < part; p++) {
            Complex unit = turn(2 * p * stride * r % FFT);
            for (int q = 0; q < stride; q++) {
                Complex sum = {0.0f, 0.0f};
                const Complex *x = from + q + stride * p;
                for (int k = 0, at = 0; k < radix; k++, x += stride * part) {
                    Complex y = product(*x, turn(at));
                    sum.re += y.re, sum.im += y.im;
                    at += step;
                    at -= at >= FFT ? FFT : 0;
                }
                to[q + stride * (radix * p + r)] = product(sum, unit);
            }
        }
    }
}

/* FFT of HALF complex values; returns which of the two buffers holds the result. */
static Complex *transform(Complex *from, Complex *to)
{
    for (int length = HALF, stride = 1; length > 1;) {
        int radix = length % 4 == 0 ? 4 : 2;
        while (length % radix)
            radix++;
        if (radix == 4)
            radix4(from, to, length, stride);
        else if (radix == 2)
            radix2(from, to, length, stride);
        else
            radix_any(from, to, length, stride, radix);
        length /= radix, stride *= radix;
        Complex *other = from;
        from = to, to = other;
    }
    return from;
}

/* Power of bin k of the real signal whose even and odd samples were transformed together. */
static float power(const Complex *z, int k)
{
    Complex a = z[k < HALF ? k : 0], b = z[k ? HALF - k : 0];
    Complex even = {0.5f * (a.re + b.re), 0.5f * (a.im - b.im)};
    Complex odd = {0.5f * (a.im + b.im), 0.5f * (b.re - a.re)};
    Complex turned = product(odd, turn(k));
    float re = even.re + turned.re, im = even.im + turned.im;
    return re * re + im * im;
}

/* Natural logarithm of a positive normal number, to about 1e-6. */
static float logarithm(float value)
{
    int32_t bits;
    memcpy(&bits, &value, sizeof bits);
    int exponent = (bits - 0x3F3504F3) >> 23; /* mantissa from sqrt(1/2) to sqrt(2) */
    bits -= exponent * (1 << 23);
    memcpy(&value, &bits, sizeof bits);
    float s = (value - 1.0f) / (value + 1.0f), square = s * s;
    float series = 1.0f / 7.0f;
    series = 1.0f / 5.0f + square * series;
    series = 1.0f / 3.0f + square * series;
    return (float)exponent * 0.69314718f + 2.0f * s * (1.0f + square * series);
}

static inline float hann(int n)
{
#if WINDOW == FFT
    return 0.5f - 0.5f * turn(n).re;
#else
    return HANN[n <= WINDOW / 2 ? n : WINDOW - n];
#endif
}

/* Mel bands of one frame, powers of at least FLOOR. `work` has 2 * FFT floats, `mel` BANDS. */
static void frame_bands(const float *waveform, int frame, float *work, float *mel)
{
    int start = frame * HOP - (CENTER ? FFT / 2 : 0), before = (FFT - WINDOW) / 2;
    memset(work, 0, FFT * sizeof *work);
    for (int n = 0; n < WINDOW; n++) {
        int at = start + before + n;
        if (at >= 0 && at < SAMPLES)
            work[before + n] = waveform[at] * hann(n);
    }
    /* pairs of floats are complex numbers */
    const Complex *z = transform((Complex *)(void *)work, (Complex *)(void *)(work + FFT));
    for (int m = 0; m < BANDS; m++)
        mel[m] = 0.0f;
    for (int m = 0; m <= BANDS; m++)
        for (int k = EDGES[m]; k < EDGES[m + 1]; k++) {
            float energy = power(z, k), rising = RISING[k] * energy;
            if (m < BANDS)
                mel[m] += rising;
            if (m > 0)
                mel[m - 1] += energy - rising;
        }
    for (int m = 0; m < BANDS; m++)
        mel[m] = mel[m] > FLOOR ? mel[m] : FLOOR;
}

/* Logarithm of the clip's mean power, if it is to be taken away from each band. */
static float level(const float *waveform, float *work, float *mel)
{
    float sum = 0.0f;
    for (int frame = 0; LEVEL && frame < FRAMES; frame++) {
        float part = 0.0f;
        frame_bands(waveform, frame, work, mel);
        for (int m = 0; m < BANDS; m++)
            part += mel[m];
        sum += part;
    }
    return LEVEL ? logarithm(sum / (float)(FRAMES * BANDS)) : 0.0f;
}

static void set_frame(int channel, int frame, const float *bands)
{
    for (int m = 0; m < BANDS; m++)
        network_set(channel, m, frame, (bands[m] - MEAN[channel][m]) / DEVIATION[channel][m]);
}

static const float *clamped(const float *ring, int frame)
{
    int last = frame < 0 ? 0 : frame >= FRAMES ? FRAMES - 1 : frame;
    return ring + last % RING * BANDS;
}

/* Least-squares slope over five frames, the ends repeated. */
static void slope(const float *ring, int frame, float *out)
{
    const float *a = clamped(ring, frame - 2), *b = clamped(ring, frame - 1);
    const float *c = clamped(ring, frame + 1), *d = clamped(ring, frame + 2);
    for (int m = 0; m < BANDS; m++)
        out[m] = 0.1f * (c[m] - b[m]) + 0.2f * (d[m] - a[m]);
}

static int largest(const float *logits)
{
    int best = 0;
    for (int i = 1; i < CLASSES; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

int classify(const float *waveform, float *logits)
{
    float *work = network_workspace(), *rings = work + 2 * FFT;
    float taken = level(waveform, work, rings);
    /* each channel of slopes lags two frames behind the one it is taken of */
    for (int step = 0; step < FRAMES + 2 * DELTAS; step++)
        for (int channel = 0; channel <= DELTAS; channel++) {
            int frame = step - 2 * channel;
            float *ring = rings + channel * RING * BANDS;
            float *bands = ring + (frame < 0 ? 0 : frame) % RING * BANDS;
            if (frame < 0 || frame >= FRAMES)
                continue;
            if (channel > 0)
                slope(ring - RING * BANDS, frame, bands);
            else
                frame_bands(waveform, frame, work, bands);
            for (int m = 0; channel == 0 && m < BANDS; m++)
                bands[m] = logarithm(bands[m]) - taken;
            set_frame(channel, frame, bands);
        }
    network_run(logits);
    return largest(logits);
}

int classify_features(const float *features, float *logits)
{
    for (int channel = 0; channel <= DELTAS; channel++)
        for (int m = 0; m < BANDS; m++)
            for (int frame = 0; frame < FRAMES; frame++)
                network_set(channel, m, frame, *features++);
    network_run(logits);
    return largest(logits);
}
