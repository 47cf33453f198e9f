/* Loads and stores of network byte order at any alignment.
 *
 * Frames lie in the ring at arbitrary offsets, so a pointer cast to uint16_t would be
 * undefined and fault on some machines; a memcpy of a constant size compiles to one load. */
#ifndef PKTSTUN_BYTES_H
#define PKTSTUN_BYTES_H

#include <stdint.h>
#include <string.h>
#include <arpa/inet.h>

static inline uint16_t load16(const uint8_t *bytes)
{
    uint16_t value;
    memcpy(&value, bytes, sizeof value);
    return ntohs(value);
}

static inline uint32_t load32(const uint8_t *bytes)
{
    uint32_t value;
    memcpy(&value, bytes, sizeof value);
    return ntohl(value);
}

static inline void store16(uint8_t *bytes, uint16_t value)
{
    value = htons(value);
    memcpy(bytes, &value, sizeof value);
}

static inline void store32(uint8_t *bytes, uint32_t value)
{
    value = htonl(value);
    memcpy(bytes, &value, sizeof value);
}

#endif
