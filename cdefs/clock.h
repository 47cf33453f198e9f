/* The kernel's clocks in nanoseconds. */
#ifndef PKTSTUN_CLOCK_H
#define PKTSTUN_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_S UINT64_C(1000000000)

static inline uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static inline uint64_t monotonic(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

#endif
