/* Why a message could not be sent: the errno of sendmmsg, one counter for each. The numbers
 * stand in the shared page: new ones go to the end. */
enum pktstun_send_error {
    PKTSTUN_SEND_EAGAIN,
    PKTSTUN_SEND_ENOBUFS,
    PKTSTUN_SEND_EPERM,
    PKTSTUN_SEND_EACCES,
    PKTSTUN_SEND_EINVAL,
    PKTSTUN_SEND_ENETUNREACH,
    PKTSTUN_SEND_EHOSTUNREACH,
    PKTSTUN_SEND_ENETDOWN,
    PKTSTUN_SEND_OTHER,
    PKTSTUN_SEND_ERRORS
};

#define PKTSTUN_FAMILIES 3         /* index 0: no IP header was read; 1: IPv4; 2: IPv6 */
#define PKTSTUN_CURSOR_SHIFT 16    /* cursor = sequence << 16 | frames done */
#define PKTSTUN_WHOLE_BLOCK 0xFFFF /* in place of a frame's index: more than a block holds */
#define PKTSTUN_ROOM 64            /* for counters that later versions will have */
#define PKTSTUN_SIZES 16           /* of batches: 1, 2 to 3, 4 to 7, ..., from 32768 */

/* One worker's part of the shared page. The worker's loop writes the first group and nobody
 * else does. The worker notes itself in pid and starts, the supervisor writes the rest of the
 * second group. All are 64 bits wide, so that a reader in another process never sees half a
 * value. The page outlives the version that made it: new fields go to the end, arrays have
 * room, and nothing is moved. */
struct pktstun_slot {
    uint64_t heartbeat;      /* CLOCK_MONOTONIC in ns, written on every pass of the loop */
    uint64_t cursor;         /* sequence number of the ring block to read next, and how many
                                of its frames are settled: where the next worker goes on */
    uint64_t frame;          /* the frame in hand, as sequence << 16 | index, or 0: when a
                                worker dies, what it died of */
    uint64_t received[PKTSTUN_FAMILIES];
    uint64_t verdicts[PKTSTUN_FAMILIES][PKTSTUN_ROOM];
    uint64_t handovers;      /* datagrams given to respond() */
    uint64_t ring_blocks;    /* blocks read */
    uint64_t ring_corrupt;   /* blocks abandoned because a header made no sense */
    uint64_t ring_errors;    /* POLLERR on the ring, e.g. the interface went down */
    uint64_t receive_calls;  /* recvmmsg that returned datagrams */
    uint64_t socket_received;  /* datagrams that came through a socket, not the ring */
    uint64_t send_calls;     /* sendmmsg */
    uint64_t sent;           /* messages that sendmmsg took */
    uint64_t other_way;      /* success replies that must not leave directly: the way back is */
    uint64_t other_neighbour;  /* another interface, or another neighbour on the same one */
    uint64_t send_errors[PKTSTUN_ROOM];

    uint64_t stop;           /* an enum pktstun_stop: come back from the loop */
    uint64_t pid;            /* the worker, 0 while there is none */
    uint64_t starts;         /* workers started for this slot */
    uint64_t ring_packets;   /* PACKET_STATISTICS, added up: seen by the ring, drops included */
    uint64_t ring_drops;     /* not stored because the ring was full */
    uint64_t ring_freezes;   /* times the ring was found full */
    uint64_t skip;           /* the frame to pass over, as in frame, or the whole block */

    uint64_t over_limit;     /* requests above the rate limit, answered or not; the loop's */

    /* The TCP and TLS server's connections, by pktstun_count. */
    uint64_t connections;            /* taken in */
    uint64_t connections_refused;    /* closed at once: a limit, or an address not served */
    uint64_t connections_timed_out;  /* closed because nothing came, or nothing was read */
    uint64_t handshakes_failed;      /* closed because TLS did not come about */
    uint64_t connections_open;       /* now, of the process that takes more in */

    /* The loop's again. */
    uint64_t ring_ready;             /* blocks that could be read when they were last counted */
    uint64_t ring_ready_peak;        /* the most that were counted since the ring is there */
    uint64_t receive_sizes[PKTSTUN_SIZES];  /* recvmmsg and ring blocks, by their datagrams */
    uint64_t send_sizes[PKTSTUN_SIZES];     /* sendmmsg, by the messages that it took */

    uint64_t socket_drops;    /* lost because a socket's buffer was full; the supervisor's */

    /* For those who watch. The first two are the supervisor's and stand in the exporter's slot. */
    uint64_t interface_down;  /* 1: the one of the rings is down, or gone */
    uint64_t takeover;        /* 1: the kernel is spared what the rings answer */
    uint64_t tls_missing;     /* 1: TLS is not served, since the certificate cannot be used */
};

/* Adds to a counter that several processes write: a worker that only serves its open
 * connections to their end shares the slot with its successor. */
void pktstun_count(uint64_t *counter, uint64_t amount);

/* Why a loop has to come back. */
enum pktstun_stop {
    PKTSTUN_STOP_NONE,
    PKTSTUN_STOP_DRAIN,      /* the service ends: answer what has arrived, then leave */
    PKTSTUN_STOP_LEAVE       /* a successor is about to start, and what waits is its */
};

/* A datagram that waits for respond(). */
struct pktstun_handover {
    struct pktstun_address source;
    struct pktstun_address destination;
    uint32_t socket;         /* index of the socket that replies */
    uint32_t from_ring;      /* 1: it came through the ring, 0: through the socket */
    uint32_t length;
    uint64_t frame;          /* its place in the ring, as in the slot; 0 from a socket */
    uint8_t data[PKTSTUN_MAX_DATAGRAM];
};

#define PKTSTUN_MAX_SOCKETS 64
#define PKTSTUN_MAX_HANDOVERS 256   /* what a recvmmsg or a block of 16 KiB can hold */
#define PKTSTUN_MAX_BLOCK 4194304  /* bytes: its frames can be counted in CURSOR_SHIFT bits */

/* A bound UDP socket that the engine borrows. */
struct pktstun_socket {
    int fd;
    uint8_t wildcard;        /* bound to 0.0.0.0 or ::, with IP_PKTINFO or IPV6_RECVPKTINFO */
    struct pktstun_address address;
};

/* What an engine is made of. Everything is borrowed and must outlive the engine. */
struct pktstun_setup {
    struct pktstun_slot *slot;
    const struct pktstun_options *ring_options;     /* NULL without a ring */
    const struct pktstun_options *socket_options;
    uint8_t *ring;           /* the mapped ring, NULL without one */
    int ring_fd;
    size_t block_size;
    uint32_t block_count;
    int frame_fd;            /* packet socket that sends the frames of direct mode, or -1 */
    const struct pktstun_routes *routes;            /* shared; NULL without direct mode */
    const struct pktstun_socket *sockets;           /* copied */
    uint32_t socket_count;
    uint32_t batch;          /* datagrams in a recvmmsg and in a sendmmsg at most */
    uint64_t spin;           /* ns for which an idle loop looks again before it sleeps */
    uint32_t handover_percent;  /* of the time that respond() may take; 100: without limit */
    struct pktstun_limiter *limiter;                /* NULL without a rate limit */
    const struct pktstun_limits *limits;
};

struct pktstun_engine;

/* Why the loop came back. A negative value is -errno: a descriptor is unusable. */
enum pktstun_run {
    PKTSTUN_RUN_BUDGET,      /* the time is used up */
    PKTSTUN_RUN_SIGNAL,      /* a signal arrived */
    PKTSTUN_RUN_STOP,        /* the stop flag is set */
    PKTSTUN_RUN_HANDOVER,    /* datagrams wait for respond(): see pktstun_engine_handover */
    PKTSTUN_RUN_IDLE         /* draining, and nothing came within the grace time */
};

/* An engine, or NULL with errno set. */
struct pktstun_engine *pktstun_engine_new(const struct pktstun_setup *setup);
void pktstun_engine_free(struct pktstun_engine *engine);

/* Reads, answers and sends until something of enum pktstun_run happens; the handovers of
 * the call before must be settled. budget in ns. draining: go on despite the stop flag,
 * and end when nothing came for grace ns. */
int pktstun_engine_run(struct pktstun_engine *engine, uint64_t budget,
                       int draining, uint64_t grace);

uint32_t pktstun_engine_handovers(const struct pktstun_engine *engine);

/* A handover, from now on the frame in hand. */
const struct pktstun_handover *pktstun_engine_handover(
    const struct pktstun_engine *engine, uint32_t index);

/* Records what respond() said: the verdict, and the reply unless it is a drop. It leaves from
 * server, which is NULL where that is where the request was sent to, and goes to this port of the
 * client's. */
int pktstun_engine_settle(struct pktstun_engine *engine, uint32_t index,
                          enum pktstun_verdict verdict, const uint8_t *reply, size_t length,
                          const struct pktstun_address *server, uint16_t client_port);
