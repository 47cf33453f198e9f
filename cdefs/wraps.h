/* Where unsigned numbers wrap around on purpose.
 *
 * C defines it, but it is a mistake nearly everywhere else: an offset or a length that wraps passes
 * the check behind it. So the fuzzers' builds report every wrap, except in functions that say
 * WRAPS. */
#ifndef PKTSTUN_WRAPS_H
#define PKTSTUN_WRAPS_H

#ifdef __clang__
#define WRAPS __attribute__((no_sanitize("unsigned-integer-overflow", "unsigned-shift-base")))
#else
#define WRAPS
#endif

#endif
