/* How often a source is answered, in memory that does not grow.
 *
 * Anyone can write anyone's address on a request. So a limiter has two enemies: who uses the
 * server to flood somebody, and who floods the server in somebody's name in order to have that
 * one cut off. Against the first there is a rate for each source, and one for its network, since
 * its addresses may be swept. Against the second, a share of what is over the limit is answered
 * all the same, by chance: a client whose address is abused gets through when it retransmits.
 *
 * Each source has an account after the Generic Cell Rate Algorithm (ITU-T I.371, annex A): one
 * number, the time at which it will be clear of all that it was answered (the theoretical arrival
 * time). A reply adds the interval 1/rate; what lies too far ahead of now is over the limit. What
 * is not answered is not charged.
 *
 *   64                 40 39                                      0
 *  +---------------------+-----------------------------------------+
 *  | tag: 24 bits of the |  time in ticks of 64 ns, modulo 2^40    |
 *  | hash of the source  |  (19.5 hours)                           |
 *  +---------------------+-----------------------------------------+
 *
 * Eight accounts are a line of the cache. The keyed hash (SipHash-1-3, so that nobody knows who
 * shares a line with whom) says which line a source belongs to. A newcomer takes the place of one
 * that is clear, or of the one that will be so first: what is over its limit has the latest time
 * and stays, however many come by. Two sources that share line and tag share an account.
 *
 * The memory is one worker's, so there are no locks; it outlives the worker, so there is nothing
 * in it that a death in between could leave half done: an account is one store. It may have been
 * written over by a bug in a dead worker: no value in it is used as an index. */
#include "limiter.h"

#include <string.h>

#include "bytes.h"
#include "wraps.h"

enum {
    WAYS = 8,
    LINES = 8192,
    TICK_SHIFT = 6, /* ns >> 6 */
    TIME_BITS = 40,
    FEWEST_BURST = 16, /* replies that may come at once, however low the rate is */
};
#define TICKS_PER_S (UINT64_C(1000000000) >> TICK_SHIFT)
#define TIME_MASK ((UINT64_C(1) << TIME_BITS) - 1)
/* 17 s: no account is further ahead of now. What seems to be is behind, by any time. */
#define FURTHEST (UINT64_C(1) << 28)
_Static_assert(FEWEST_BURST * (UINT64_C(1000000000) >> TICK_SHIFT) < (UINT64_C(1) << 28),
               "a burst at one reply per second is an account's longest way ahead");

struct pktstun_limiter {
    uint64_t key[2];
    uint64_t latest; /* ticks: the time last asked at */
    uint64_t random; /* state of the generator, not 0 */
    uint64_t reserved[4];
    uint64_t accounts[LINES][WAYS];
};
_Static_assert(sizeof(struct pktstun_limiter) == PKTSTUN_LIMITER_BYTES, "as declared");

WRAPS static uint64_t rotate(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

WRAPS static void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[1] = rotate(v[1], 13) ^ v[0], v[0] = rotate(v[0], 32);
    v[2] += v[3], v[3] = rotate(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = rotate(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = rotate(v[1], 17) ^ v[2], v[2] = rotate(v[2], 32);
}

/* SipHash-1-3 (Aumasson and Bernstein, 2012) of nine bytes: a prefix and what kind it is of. */
static uint64_t hash(const uint64_t key[2], uint64_t prefix, uint64_t kind)
{
    uint64_t v[4] = {
        key[0] ^ UINT64_C(0x736F6D6570736575),
        key[1] ^ UINT64_C(0x646F72616E646F6D),
        key[0] ^ UINT64_C(0x6C7967656E657261),
        key[1] ^ UINT64_C(0x7465646279746573),
    };
    uint64_t words[2] = {prefix, UINT64_C(9) << 56 | kind};
    for (int i = 0; i < 2; i++) {
        v[3] ^= words[i];
        sip_round(v);
        v[0] ^= words[i];
    }
    v[2] ^= 0xFF;
    for (int i = 0; i < 3; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* xorshift64 (Marsaglia, 2003): who is answered need not be secret, only not always the same. */
WRAPS static uint32_t chance(struct pktstun_limiter *limiter)
{
    uint64_t x = limiter->random ? limiter->random : 1;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    limiter->random = x;
    return (uint32_t)((x >> 32) * 100 >> 32);
}

/* How far an account is ahead of now, in ticks. */
WRAPS static uint64_t ahead(uint64_t account, uint64_t now)
{
    uint64_t distance = (account - now) & TIME_MASK;
    return distance <= FURTHEST ? distance : 0;
}

/* A time as an account has it. */
WRAPS static uint64_t later(uint64_t now, uint64_t distance)
{
    return (now + distance) & TIME_MASK;
}

/* What has been opened for a prefix: where the account stands, and what is to be written. */
struct account {
    uint64_t *place;
    uint64_t value;  /* with the reply charged */
    int within;      /* its limit */
};

/* taken: the place of the request's other account, which may be in the same line. */
static struct account open_account(struct pktstun_limiter *limiter, uint64_t digest,
                                   uint32_t rate, uint64_t now, const uint64_t *taken)
{
    uint64_t tag = digest >> TIME_BITS;
    uint64_t *line = limiter->accounts[digest % LINES];
    uint64_t *place = line, least = UINT64_MAX;
    for (int i = 0; i < WAYS; i++) {
        if (&line[i] == taken)
            continue;
        uint64_t left = ahead(line[i], now);
        if (line[i] >> TIME_BITS == tag) {
            place = &line[i];
            least = left;
            break;
        }
        if (left < least) {
            place = &line[i];
            least = left;
        }
    }
    if (*place >> TIME_BITS != tag)
        least = 0; /* a newcomer's */

    uint64_t interval = (uint32_t)TICKS_PER_S / rate;
    uint64_t burst = rate / 4 > FEWEST_BURST ? rate / 4 : FEWEST_BURST;
    uint64_t clear = least + interval;
    return (struct account){
        .place = place,
        .value = tag << TIME_BITS | later(now, clear),
        .within = clear <= burst * interval,
    };
}

static int is_exempt(const struct pktstun_limits *limits, const struct pktstun_address *source)
{
    for (uint32_t i = 0; i < limits->exempt_count; i++) {
        const struct pktstun_prefix *prefix = &limits->exempt[i];
        size_t whole = prefix->bits / 8;
        uint8_t mask = (uint8_t)(0xFF00 >> prefix->bits % 8);
        if (prefix->family == source->family && memcmp(prefix->ip, source->ip, whole) == 0
            && (!mask || ((prefix->ip[whole] ^ source->ip[whole]) & mask) == 0))
            return 1;
    }
    return 0;
}

void pktstun_limiter_init(struct pktstun_limiter *limiter, const uint8_t *key)
{
    memcpy(limiter->key, key, sizeof limiter->key);
    /* Who is answered tells the generator's state, which must not tell the key. No account is of
     * this kind. */
    limiter->random = hash(limiter->key, 0, 255) | 1;
}

/* A worker cannot have asked in the future, so if this says so, a bug has written over it. The
 * time would stand still until then, and every source be limited. */
void pktstun_limiter_resume(struct pktstun_limiter *limiter, uint64_t now)
{
    now >>= TICK_SHIFT;
    if (limiter->latest > now)
        limiter->latest = now;
}

struct pktstun_digests pktstun_limiter_look(const struct pktstun_limiter *limiter,
                                            const struct pktstun_address *source)
{
    int ipv6 = source->family == 6;
    uint64_t host = load32(source->ip);
    if (ipv6)
        host = host << 32 | load32(source->ip + 4);
    uint64_t kind = ipv6 ? 2 : 0;
    struct pktstun_digests digests = {
        .host = hash(limiter->key, host, kind),
        .network = hash(limiter->key, host >> 8, kind + 1),
    };
    __builtin_prefetch(limiter->accounts[digests.host % LINES], 1);
    __builtin_prefetch(limiter->accounts[digests.network % LINES], 1);
    return digests;
}

enum pktstun_limit pktstun_limiter_ask(struct pktstun_limiter *limiter,
                                       const struct pktstun_limits *limits,
                                       const struct pktstun_address *source,
                                       struct pktstun_digests digests, uint64_t now)
{
    if (is_exempt(limits, source))
        return PKTSTUN_LIMIT_WITHIN;
    now >>= TICK_SHIFT;
    if (now < limiter->latest)
        now = limiter->latest;
    limiter->latest = now;

    struct account of_host =
        open_account(limiter, digests.host, limits->host_rate, now, NULL);
    struct account of_network =
        open_account(limiter, digests.network, limits->network_rate, now, of_host.place);
    if (!of_host.within || !of_network.within)
        return chance(limiter) < limits->share ? PKTSTUN_LIMIT_SHARE : PKTSTUN_LIMIT_OVER;
    *of_host.place = of_host.value;
    *of_network.place = of_network.value;
    return PKTSTUN_LIMIT_WITHIN;
}
