/* The Internet checksum (RFC 1071): a ones' complement sum of 16-bit words.
 *
 * Kept in 64 bits and folded at the end. Four bytes are added at a time, since 2^16 is 1 in
 * ones' complement arithmetic; an odd last byte counts as the high half of a word. */
#ifndef PKTSTUN_CHECKSUM_H
#define PKTSTUN_CHECKSUM_H

#include "bytes.h"

static inline uint64_t sum_words(uint64_t sum, const uint8_t *bytes, size_t length)
{
    for (; length >= 4; bytes += 4, length -= 4)
        sum += load32(bytes);
    if (length >= 2) {
        sum += load16(bytes);
        bytes += 2;
        length -= 2;
    }
    if (length)
        sum += (uint64_t)bytes[0] << 8;
    return sum;
}

/* 0xFFFF if the summed bytes, checksum field included, are undamaged. */
static inline uint16_t fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    return (uint16_t)sum;
}

#endif
