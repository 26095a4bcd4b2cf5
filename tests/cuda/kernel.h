// The interface between translated kernels and the driver.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

// A register. Each PTX instruction states how it reads it.
typedef union {
    uint8_t u8;
    int8_t s8;
    uint16_t u16;
    int16_t s16;
    uint32_t u32;
    int32_t s32;
    uint64_t u64;
    int64_t s64;
    float f32;
    double f64;
} reg;

struct block {
    void **params;
    char *shared;
    uint32_t ctaid[3], ntid[3], nctaid[3];
};

struct thread {
    const struct block *block;
    uint32_t tid[3], lane;
    int resume;             // where to go on after a wait
    uint32_t given;         // to the other threads of the warp
    const uint32_t *taken;  // what all threads of the warp gave
    void *registers;        // of kernels that wait; others have theirs on the stack
};

// Why a kernel returned: it finished, it waits for all threads of its block or warp, or an assertion failed.
enum { DONE, AT_BARRIER, AT_SHUFFLE, FAILED };

typedef int kernel(struct thread *);

static inline float half_to_float(uint16_t bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return (float)value;
}

static inline uint16_t half_of(double value) {
    _Float16 rounded = (_Float16)value;
    uint16_t bits;
    memcpy(&bits, &rounded, 2);
    return bits;
}

static inline float bfloat_to_float(uint16_t bits) {
    return ((reg){.u32 = (uint32_t)bits << 16}).f32;
}

static inline uint16_t bfloat_of(double value) {
    if (isnan(value)) return 0x7fff;
    // Rounds to odd in f32, so that rounding twice equals rounding once.
    reg single = {.f32 = (float)value};
    if ((double)single.f32 != value && !isinf(single.f32)) {
        if (fabs((double)single.f32) > fabs(value)) single.u32 -= 1;
        single.u32 |= 1;
    }
    return (uint16_t)((single.u32 + 0x7fff + ((single.u32 >> 16) & 1)) >> 16);
}
