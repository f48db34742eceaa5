/* Start of a program on a simulated Cortex-M board (QEMU's mps2-an386 and mps2-an500). */

#include <stdint.h>
#include <string.h>

extern uint32_t stack_top, data_load, data_start, data_end, bss_start, bss_end;
extern int main(void);
extern void systick_handler(void);

void reset(void);

void reset(void)
{
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* lets the floating-point unit run */
    __asm__ volatile("dsb\n isb");
    memcpy(&data_start, &data_load, (size_t)((char *)&data_end - (char *)&data_start));
    memset(&bss_start, 0, (size_t)((char *)&bss_end - (char *)&bss_start));
    main();
}

static void fault(void)
{
    __asm__ volatile("mov r0, #0x18\n ldr r1, =0x20023\n bkpt 0xAB" ::: "r0", "r1", "memory");
    for (;;)
        ;
}

typedef void (*Handler)(void);

__attribute__((section(".vectors"), used)) static const Handler vectors[16] = {
    (Handler)(uintptr_t)&stack_top, reset, fault, fault, fault, fault, fault, [15] = systick_handler,
};
