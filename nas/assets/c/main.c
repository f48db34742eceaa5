/* Checks the classifier against golden.h and says what it costs: on a simulated board the number
 * of instructions, by SysTick under QEMU's -icount shift=0, 40 instructions to a tick. */

#include "classifier.h"
#include "golden.h"
#include "network.h"

#include <stdint.h>

/* The front end once more, held against the golden features on its way into the network. */
static void compared_set(int channel, int band, int frame, float value);
#define network_set compared_set
#define classify compared_classify
#define classify_features compared_classify_features
#include "frontend.c"
#undef network_set
#undef classify
#undef classify_features

#ifdef SEMIHOSTING
#define INSTRUCTIONS_PER_TICK 40u
#define TICKS 0x1000000u /* the counter has 24 bits */
#define SYSTICK ((volatile uint32_t *)0xE000E010)

static volatile uint32_t wraps;

void systick_handler(void)
{
    wraps++;
}

static void start_counter(void)
{
    SYSTICK[1] = TICKS - 1, SYSTICK[2] = 0, SYSTICK[0] = 7;
}

static uint32_t instructions(void)
{
    uint32_t before, left;
    do {
        before = wraps;
        left = SYSTICK[2];
    } while (before != wraps);
    /* modulo 2^32: differences hold up to 4.2 thousand million instructions */
    return (before * TICKS + (TICKS - 1 - left)) * INSTRUCTIONS_PER_TICK;
}

static uint32_t semihosting(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void print(const char *text)
{
    semihosting(4, text);
}

static void leave(int status)
{
    semihosting(0x18, (const void *)(uintptr_t)(status ? 0x20023 : 0x20026));
    for (;;)
        ;
}
#else
#include <stdio.h>
#include <stdlib.h>

static void start_counter(void) {}

static uint32_t instructions(void)
{
    return 0;
}

static void print(const char *text)
{
    fputs(text, stdout);
}

static void leave(int status)
{
    exit(status ? 1 : 0);
}
#endif

static void say(const char *name, uint32_t number)
{
    char text[12], *at = text + sizeof text - 1;
    *at = 0, *--at = '\n';
    do
        *--at = (char)('0' + number % 10);
    while (number /= 10);
    print(name), print(" "), print(at);
}

static float waveform[SAMPLES], features[FEATURES], logits[CLASSES];

static int clip;
static uint32_t off; /* features of the clip that are off */

/* Within a thousandth of what the network is to hear; golden features are rounded to steps. */
static void compared_set(int channel, int band, int frame, float value)
{
    int step = FEATURE_STEPS[clip][(channel * BANDS + band) * FRAMES + frame];
    float difference = value - (float)step * FEATURE_STEP;
    difference = difference < 0.0f ? -difference : difference;
    off += difference > FEATURE_STEP / 2.0f + 1e-3f;
    network_set(channel, band, frame, value);
}

static float largest_difference(const float *expected)
{
    float most = 0.0f;
    for (int i = 0; i < CLASSES; i++) {
        float difference = logits[i] - expected[i];
        difference = difference < 0.0f ? -difference : difference;
        most = difference > most ? difference : most;
    }
    return most;
}

static int label_of(const float *values)
{
    int best = 0;
    for (int i = 1; i < CLASSES; i++)
        best = values[i] > values[best] ? i : best;
    return best;
}

int main(void)
{
    uint32_t labels = 0, heard = 0, close = 0, alike = 0, start, network, whole;
    start_counter();
    for (clip = 0; clip < CLIPS; clip++) {
        for (int i = 0; i < FEATURES; i++)
            features[i] = (float)FEATURE_STEPS[clip][i] * FEATURE_STEP;
        labels += classify_features(features, logits) == label_of(LOGITS[clip]);
        close += largest_difference(LOGITS[clip]) <= TOLERANCE;
        for (int i = 0; i < SAMPLES; i++)
            waveform[i] = (float)WAVEFORMS[clip][i] / 32768.0f;
        off = 0;
        compared_classify(waveform, logits);
        alike += off == 0;
        heard += classify(waveform, logits) == WAVEFORM_LABELS[clip];
    }
    start = instructions();
    classify(waveform, logits);
    whole = instructions() - start;
    start = instructions();
    network_run(logits);
    network = instructions() - start;
    say("clips", CLIPS);
    say("equal_labels", labels);
    say("equal_logits", close);
    say("equal_features", alike);
    say("equal_waveform_labels", heard);
    say("network_instructions", network);
    say("front_end_instructions", whole - network);
    leave(labels < CLIPS || close < CLIPS || alike < CLIPS || heard < CLIPS);
    return 0;
}
