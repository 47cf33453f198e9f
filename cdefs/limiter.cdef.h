#define PKTSTUN_LIMITER_BYTES 524352   /* of one worker's table: 8192 lines and the header */
#define PKTSTUN_LIMITER_VERSION 1      /* of what stands in it: one more with every change */
#define PKTSTUN_MAX_EXEMPT 64
#define PKTSTUN_MAX_RATE 100000        /* replies per second: above, a tick is too coarse */

/* A network, as its administrator writes it. */
struct pktstun_prefix {
    uint8_t family;      /* 4 or 6 */
    uint8_t bits;
    uint8_t ip[16];      /* network byte order; IPv4 fills the first 4 bytes */
};

/* What the operator allows. Rates are replies per second, at least 1. */
struct pktstun_limits {
    uint32_t host_rate;      /* of an IPv4 address or an IPv6 /64 */
    uint32_t network_rate;   /* of an IPv4 /24 or an IPv6 /56 */
    uint32_t share;          /* percent of the requests above that are answered all the same */
    uint32_t exempt_count;
    struct pktstun_prefix exempt[PKTSTUN_MAX_EXEMPT];
};

/* How often each source was answered: PKTSTUN_LIMITER_BYTES of memory at a multiple of 64. */
struct pktstun_limiter;

enum pktstun_limit {
    PKTSTUN_LIMIT_WITHIN,      /* answer */
    PKTSTUN_LIMIT_SHARE,       /* over the limit, and one of those that are answered */
    PKTSTUN_LIMIT_OVER         /* do not answer */
};

/* Prepares zeroed memory; key: 16 random bytes that nobody else knows. */
void pktstun_limiter_init(struct pktstun_limiter *limiter, const uint8_t *key);

/* Goes on with the memory of a worker that has ended, at this time. */
void pktstun_limiter_resume(struct pktstun_limiter *limiter, uint64_t now);

/* The keyed hashes of a source and of its network. */
struct pktstun_digests {
    uint64_t host;
    uint64_t network;
};

/* Begins to look a source up: what memory that takes comes while the caller goes on. */
struct pktstun_digests pktstun_limiter_look(
    const struct pktstun_limiter *limiter, const struct pktstun_address *source);

/* Whether a request from this source may be answered at this time, in ns of a clock that does
 * not go backwards (if it does, it stands still here); if so, it is charged for. */
enum pktstun_limit pktstun_limiter_ask(
    struct pktstun_limiter *limiter, const struct pktstun_limits *limits,
    const struct pktstun_address *source, struct pktstun_digests digests, uint64_t now);
