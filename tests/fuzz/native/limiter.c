/* The rate limiter over a sequence of requests.
 *
 *   key | host rate | network rate | share | mode, exempt bits | four addresses | requests
 *
 * Four addresses have eight accounts at most, as many as a line has room for. So no account is ever
 * pushed out, even if all share a line, and these claims hold for each host and each network:
 *
 * - since its first reply it had no more than burst + time / interval,
 * - what is over its limit stays so until the clock has gone on, whatever the clock does instead,
 * - a source that is exempt is always answered, and changes nothing.
 *
 * In the hostile mode the requests write rubbish into the table as well, as a bug in a dead worker
 * might. Then nothing is claimed but what the sanitizers see. */
#include <string.h>

#include "bytes.h"
#include "harness.h"
#include "limiter.h"

enum { SOURCES = 4, TICK = 64, TICKS_PER_S = 1000000000 / TICK, FEWEST_BURST = 16 };
enum { EXEMPT = 1, HOSTILE = 2 };
enum { MOST = 2000 }; /* requests: more would only be slower */

/* How an account was treated. */
struct history {
    uint64_t began, replies; /* in ticks */
};

static int is_same_prefix(const uint8_t *one, const uint8_t *other, unsigned bits)
{
    for (unsigned bit = 0; bit < bits; bit++)
        if ((one[bit / 8] ^ other[bit / 8]) >> (7 - bit % 8) & 1)
            return 0;
    return 1;
}

/* The first of the sources that has the same account. */
static size_t account_of(const struct pktstun_address *sources, size_t index, int network)
{
    const struct pktstun_address *source = &sources[index];
    unsigned bits = source->family == 4 ? (network ? 24 : 32) : (network ? 56 : 64);
    for (size_t i = 0; i < index; i++)
        if (sources[i].family == source->family
            && is_same_prefix(sources[i].ip, source->ip, bits))
            return i;
    return index;
}

static void charge(struct history *history, uint32_t rate, uint64_t now)
{
    uint64_t interval = TICKS_PER_S / rate;
    uint64_t burst = rate / 4 > FEWEST_BURST ? rate / 4 : FEWEST_BURST;
    if (history->replies == 0)
        history->began = now;
    history->replies++;
    CLAIM(history->replies <= burst + (now - history->began) / interval,
          "%ju replies at %u per second", (uintmax_t)history->replies, rate);
}

/* The time of the next request. */
static uint64_t moved(uint64_t now, uint8_t how, struct input *input,
                      const struct pktstun_limits *limits)
{
    uint64_t step = 0;
    switch (how) {
    case 1:
        step = 1000000000 / limits->host_rate;
        break;
    case 2:
        step = 1000000000 / limits->network_rate;
        break;
    case 3:
        step = take16(input) * UINT64_C(1000);
        break;
    case 4:
        step = take32(input) * UINT64_C(64);
        break;
    case 5:
        step = take32(input);
        return now > step ? now - step : 0;
    case 6:
        return take64(input);
    }
    return now <= UINT64_MAX - step ? now + step : UINT64_MAX;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct pktstun_limiter *limiter;
    static uint8_t before[PKTSTUN_LIMITER_BYTES];
    struct input input = {data, size};
    struct pktstun_address sources[SOURCES];
    struct history hosts[SOURCES] = {{0}}, networks[SOURCES] = {{0}};
    int over[SOURCES] = {0}; /* at the latest time */
    uint8_t key[16];

    if (!limiter) /* once: clearing is cheaper, and it ends where its memory does */
        limiter = aligned_alloc(64, PKTSTUN_LIMITER_BYTES);
    CLAIM(limiter, "no memory");
    memset(limiter, 0, PKTSTUN_LIMITER_BYTES);
    take_bytes(&input, key, sizeof key);
    pktstun_limiter_init(limiter, key);
    struct pktstun_limits limits = {
        .host_rate = 1 + take32(&input) % PKTSTUN_MAX_RATE,
        .network_rate = 1 + take32(&input) % PKTSTUN_MAX_RATE,
        .share = take8(&input) % 101,
    };
    uint8_t mode = take8(&input), bits = take8(&input);
    for (size_t i = 0; i < SOURCES; i++)
        sources[i] = take_address(&input);
    unsigned width = sources[0].family == 4 ? 32 : 128;
    if (mode & EXEMPT) {
        struct pktstun_prefix *exempt = &limits.exempt[limits.exempt_count++];
        exempt->family = sources[0].family;
        exempt->bits = (uint8_t)(bits % (width + 1));
        memcpy(exempt->ip, sources[0].ip, sizeof exempt->ip);
    }

    uint64_t now = 0, latest = 0;
    size_t compared = PKTSTUN_LIMITER_BYTES; /* once the table, then what stands in front of it */
    unsigned requests = 0;
    while (input.left && requests < MOST) {
        uint8_t word = take8(&input);
        size_t index = word % SOURCES;
        uint8_t how = word >> 2 & 7;
        if (how == 7 && mode & HOSTILE) {
            uint64_t value = take64(&input);
            size_t at = take16(&input) * sizeof value; /* in the front part */
            if (word & 0x80)
                at %= 64; /* the header */
            memcpy((uint8_t *)limiter + at, &value, sizeof value);
            continue;
        }
        now = moved(now, how, &input, &limits);
        const struct pktstun_address *source = &sources[index];
        int exempt = limits.exempt_count && source->family == sources[0].family
                     && is_same_prefix(source->ip, sources[0].ip, limits.exempt[0].bits);
        if (exempt) {
            memcpy(before, limiter, compared);
        } else if (now / TICK > latest) { /* who is exempt does not move the limiter's clock */
            latest = now / TICK;
            memset(over, 0, sizeof over);
        }
        /* The upper bits of the word: that many requests at once. */
        for (unsigned times = 1u << (word >> 5); times && requests < MOST; times--, requests++) {
            struct pktstun_digests digests = pktstun_limiter_look(limiter, source);
            enum pktstun_limit said =
                pktstun_limiter_ask(limiter, &limits, source, digests, now);
            if (mode & HOSTILE)
                continue;
            CLAIM(said != PKTSTUN_LIMIT_SHARE || limits.share > 0, "a share of nothing");
            CLAIM(said != PKTSTUN_LIMIT_OVER || limits.share < 100, "all are answered");
            if (exempt) {
                CLAIM(said == PKTSTUN_LIMIT_WITHIN, "exempt, and limited");
            } else if (said == PKTSTUN_LIMIT_WITHIN) {
                CLAIM(!over[index], "unlocked without time");
                charge(&hosts[account_of(sources, index, 0)], limits.host_rate, latest);
                charge(&networks[account_of(sources, index, 1)], limits.network_rate, latest);
            } else {
                over[index] = 1;
            }
        }
        if (exempt) {
            CLAIM(memcmp(before, limiter, compared) == 0, "exempt, and noted");
            compared = 64;
        }
    }
    return 0;
}
