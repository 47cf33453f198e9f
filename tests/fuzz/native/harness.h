/* What the targets of the native fuzzer share.
 *
 * A target is LLVMFuzzerTestOneInput in a file of its own, linked with the files of cdefs/ as they
 * are shipped, and either with libFuzzer or with main.c, which runs files. It reads its arguments
 * off the front of the input; where the input ends early, zeros follow. A claim that does not hold
 * ends the process by abort(), as a sanitizer's report does. */
#ifndef PKTSTUN_FUZZ_HARNESS_H
#define PKTSTUN_FUZZ_HARNESS_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "stun.h"

#ifdef __has_feature
#define HAS_MSAN __has_feature(memory_sanitizer)
#else
#define HAS_MSAN 0
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CLAIM(condition, ...)                                   \
    do {                                                        \
        if (!(condition)) {                                     \
            fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);     \
            fprintf(stderr, __VA_ARGS__);                       \
            fprintf(stderr, " (%s)\n", #condition);             \
            abort();                                            \
        }                                                       \
    } while (0)

/* --- The input --- */

struct input {
    const uint8_t *at;
    size_t left;
};

void take_bytes(struct input *input, uint8_t *bytes, size_t count);
uint8_t take8(struct input *input);
uint16_t take16(struct input *input);
uint32_t take32(struct input *input);
uint64_t take64(struct input *input);

/* A family, then as many bytes of an address as it has, then the port. */
struct pktstun_address take_address(struct input *input);

/* --- Memory --- */

/* Bytes of the heap from an address that is `alignment` (0 to 7) above a multiple of 8 on. Nothing
 * lies behind them, so that a sanitizer sees who goes too far. */
struct exact {
    uint8_t *whole;
    uint8_t *bytes;
    size_t size;
};

/* With a pattern in it, except under MemorySanitizer, for which it is uninitialized. */
struct exact exact_new(size_t size, unsigned alignment, uint8_t pattern);
struct exact exact_copy(const uint8_t *bytes, size_t size, unsigned alignment);
void exact_free(struct exact *exact);

/* MemorySanitizer must know all of these bytes. */
void claim_initialized(const void *bytes, size_t size);

/* --- Messages that fit --- */

enum repair {
    REPAIR_STUN_LENGTH = 1,
    REPAIR_FINGERPRINT = 2,
    REPAIR_LENGTHS = 4,
    REPAIR_IP_CHECKSUM = 8,
    REPAIR_UDP_CHECKSUM = 16,
};

/* No mutation hits a checksum by chance. These make the fields right that the input asks for, with
 * code of their own. */
void repair_datagram(uint8_t *datagram, size_t size, unsigned repairs);
void repair_frame(uint8_t *frame, size_t size, unsigned repairs);

/* --- Options --- */

struct setting {
    struct pktstun_options options;
    const char *text; /* of SOFTWARE; NULL without */
    size_t text_length;
    /* Of the alternate servers: IPv4, IPv6; a family of 0 is none. */
    struct pktstun_address alternates[2];
    /* Of RFC 5780: the addresses and what they are told as, and the ports; none without. */
    int discovery;
    struct pktstun_address ips[2], told[2];
    uint16_t ports[2];
};

/* The options that the bits of two bytes stand for; the server may know the two addresses. */
void make_setting(struct setting *setting, uint8_t bits, uint8_t beyond,
                  const struct pktstun_address *source,
                  const struct pktstun_address *destination);

/* --- The model --- */

/* What receive() and respond() say. */
struct model_answer {
    int asked; /* 0: there is no model, and nothing below counts */
    unsigned verdict;
    size_t reply_length, frame_length;
    uint8_t reply[1024];  /* of an error, too */
    uint8_t frame[1024];  /* that takes the reply back, for frames */
};

/* Ask the process that PKTSTUN_FUZZ_MODEL names; see model.py. */
void ask_model_datagram(struct model_answer *answer, const struct setting *setting,
                        const struct pktstun_address *source,
                        const struct pktstun_address *destination, const uint8_t *datagram,
                        size_t size);
void ask_model_frame(struct model_answer *answer, const struct setting *setting,
                     const struct pktstun_frame *frame);

/* --- Claims --- */

/* Has the datagram answered, with every claim about an answer, those of the model among them. The
 * reply is left in `reply`, of PKTSTUN_MAX_REPLY bytes. */
enum pktstun_verdict check_answer(const uint8_t *datagram, size_t size,
                                  const struct pktstun_address *source,
                                  const struct pktstun_address *destination,
                                  const struct setting *setting, const struct model_answer *model,
                                  uint8_t *reply, size_t *reply_length);

/* How often each verdict came up; main.c prints it. */
extern unsigned long verdicts_seen[PKTSTUN_VERDICTS];

#endif
