/* A generator of STUN requests at a fixed rate, and a meter of idle time: see load.c. Only
 * tools use them; no worker runs this code. All times are in nanoseconds. */

#define PKTSTUN_LOAD_BATCH 64          /* frames in a sendmmsg: a veth queue holds 256 */
#define PKTSTUN_LOAD_REQUEST 86        /* bytes of the longest frame: IPv6, an attribute */
#define PKTSTUN_LOAD_KEYS 4
#define PKTSTUN_LOAD_LATE 1000000      /* from here on a request was sent late */
#define PKTSTUN_LOAD_OVERRUN 100000000 /* what is due may be sent so long after the end */

/* Latencies: PKTSTUN_HISTOGRAM_STEPS buckets for each power of two, the last one for all that
 * is longer than a minute. */
#define PKTSTUN_HISTOGRAM_STEPS 64
#define PKTSTUN_HISTOGRAM_BUCKETS 1984

/* What is wrong with a reply, in the order of the checks. */
enum pktstun_load_wrong {
    PKTSTUN_WRONG_FRAME,        /* no well-formed UDP datagram, or a wrong checksum */
    PKTSTUN_WRONG_SOURCE,       /* not from the address and port that was asked */
    PKTSTUN_WRONG_MESSAGE,      /* no well-formed STUN message */
    PKTSTUN_WRONG_TYPE,         /* no response to a Binding request */
    PKTSTUN_WRONG_ID,           /* a transaction id that no request had */
    PKTSTUN_WRONG_DESTINATION,  /* not sent to where that request came from */
    PKTSTUN_WRONG_MAPPED,       /* success without XOR-MAPPED-ADDRESS, or another address */
    PKTSTUN_WRONGS
};

/* What a generator is made of. Everything is borrowed and must outlive the generator. */
struct pktstun_load_setup {
    int send_fd;                /* a packet socket bound to the interface */
    uint8_t *ring;              /* mapped, on the same interface, never read from before */
    size_t block_size;
    uint32_t block_count;
    struct pktstun_address server;
    struct pktstun_address source;  /* the prefix that requests come from, host bits 0 */
    uint32_t host_bits;             /* of the prefix; at most 64 of them vary */
    uint8_t destination_mac[6];
    uint8_t source_mac[6];
    uint64_t keys[PKTSTUN_LOAD_KEYS];  /* random */
    uint32_t odd_every;             /* 0: no request has an attribute; else all have one that
                                       nobody knows, and so many-th it takes an error to say so */
};

/* What happened since pktstun_load_begin. */
struct pktstun_load_counts {
    uint64_t sent;              /* requests that the kernel took */
    uint64_t send_errors;       /* requests that it refused; they are not sent again */
    uint64_t unsent;            /* requests for which there was no time, known at the end */
    uint64_t late;              /* of the sent ones, PKTSTUN_LOAD_LATE or more after due */
    uint64_t lateness;          /* the longest */
    uint64_t send_calls;
    uint64_t elapsed;           /* sending time, known at the end */
    uint64_t replies;           /* requests with a correct success response */
    uint64_t in_time;           /* of these, arrived within the sending time */
    uint64_t errors;            /* requests with a correct error response */
    uint64_t duplicates;        /* correct responses beyond the first */
    uint64_t stale;             /* correct ids of an earlier run */
    uint64_t wrong[PKTSTUN_WRONGS];
    uint64_t latency_sum;       /* of the replies */
    uint64_t latency_max;
    uint64_t histogram[PKTSTUN_HISTOGRAM_BUCKETS];
};

struct pktstun_load;

/* A generator, or NULL with errno set. */
struct pktstun_load *pktstun_load_new(const struct pktstun_load_setup *setup);
void pktstun_load_free(struct pktstun_load *load);

/* Starts a run, now: so many requests a second, for duration, and grace for late replies.
 * 0, or -1 with errno set: EINVAL for more than 2^32 - 1 requests or none at all. */
int pktstun_load_begin(struct pktstun_load *load, uint64_t rate, uint64_t duration,
                       uint64_t grace);

/* Goes on with the run for about slice. 1: it goes on; 0: it has ended; -errno: the socket
 * is unusable. */
int pktstun_load_run(struct pktstun_load *load, uint64_t slice);

/* Ends the sending now; the grace time begins. */
void pktstun_load_stop(struct pktstun_load *load);

const struct pktstun_load_counts *pktstun_load_counts(const struct pktstun_load *load);

/* A bit for each request of the run, from the lowest of a byte up: whether it was answered, by
 * a success or an error response. NULL before the first run. */
const uint8_t *pktstun_load_answered(const struct pktstun_load *load);

/* The parts, for the tests. A request's number is run << 32 | place in the run. */
void pktstun_load_id(const uint64_t *keys, uint64_t number, uint8_t *id);
/* 1 and *number, or 0: no transaction id of these keys. */
int pktstun_load_number(const uint64_t *keys, const uint8_t *id, uint64_t *number);
/* Writes the request at this place in the run into frame; its length. */
size_t pktstun_load_request(const struct pktstun_load *load, uint32_t place, uint8_t *frame);
/* Judges and counts a frame. */
void pktstun_load_reply(struct pktstun_load *load, const struct pktstun_frame *frame);
uint32_t pktstun_histogram_bucket(uint64_t latency);

/* Reads CLOCK_MONOTONIC for about duration. *idle is the sum of the gaps between two readings
 * that are shorter than threshold: nobody else had the CPU in between. Returns the time that
 * has really passed. */
uint64_t pktstun_idle_meter(uint64_t duration, uint64_t threshold, uint64_t *idle);
