/* The worker's loop: read, answer, send, until there is a reason to go back to Python.
 *
 * One loop serves both modes. The ring, if there is one, is read block by block; the UDP
 * sockets are read with recvmmsg. With a ring, a filter on the sockets lets only those
 * datagrams through that reached the host on another interface, so that exactly one path
 * answers each datagram.
 *
 * Order in a block: answer its frames into the batches, send the batches, store the cursor,
 * give the block back. A worker that is killed at any point leaves a cursor from which the
 * next one goes on: nothing is lost, and at most the block in flight is answered twice.
 * What respond() has to answer is copied aside; the loop then comes back with the block
 * still open, and closes it when it is called again. The cursor waits at the last flush
 * before it.
 *
 * The slot in the shared page is written here and not in Python, so that a heartbeat means
 * that this loop turns, and counters survive the worker. */
#include "engine.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "batch.h"
#include "clock.h"
#include "receive.h"

enum {
    BLOCKS_PER_PASS = 16,        /* then the clock, the stop flag and the sockets are looked at */
    SOCKETS_EVERY_NS = 1000000,  /* while the ring is busy */
    COUNT_EVERY_NS = 100000000,  /* the blocks that wait: each costs a cache line */
    DRAIN_POLL_NS = 1000000,
    HANDOVER_BURST_NS = 20000000, /* the credit that can be saved up */
};

struct pktstun_engine {
    struct pktstun_setup setup;
    struct pktstun_socket sockets[PKTSTUN_MAX_SOCKETS];
    struct pktstun_batch batches[PKTSTUN_MAX_SOCKETS];
    struct pktstun_batch frames;   /* what leaves directly; no buffers without direct mode */
    struct pktstun_routes routes;  /* of what is shared, as of the last look */
    struct pollfd polls[PKTSTUN_MAX_SOCKETS + 1];  /* the ring last */
    struct pktstun_receiver receiver;

    int block_open;            /* a block waits for the handovers to be settled */
    int ring_signalled;        /* poll called the ring readable since the last block */
    int draining;
    uint64_t active;           /* when something was last read, or draining began */
    uint64_t sockets_polled;
    uint64_t ring_counted;

    uint32_t handover_count;
    int64_t handover_credit;   /* ns that respond() may take now; below 0 it owes some */
    uint64_t handover_clock;   /* up to when credit has been given */
    uint64_t handover_began;   /* CPU time when run came back with handovers, else 0 */
    struct pktstun_handover handovers[PKTSTUN_MAX_HANDOVERS];
};

/* CPU time of this thread: what others take of the CPU is not charged to respond(). */
static uint64_t cpu_time(void)
{
    return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

static size_t family_index(uint8_t family)
{
    return family == 4 ? 1 : family == 6 ? 2 : 0;
}

static void count_verdict(struct pktstun_slot *slot, uint8_t family, enum pktstun_verdict verdict)
{
    pktstun_bump(&slot->verdicts[family_index(family)][verdict], 1);
}

/* The socket that a reply from this address leaves through, or -1. */
static int find_socket(const struct pktstun_engine *engine,
                       const struct pktstun_address *address)
{
    for (uint32_t i = 0; i < engine->setup.socket_count; i++) {
        const struct pktstun_address *own = &engine->sockets[i].address;
        if (own->family == address->family && own->port == address->port
            && (engine->sockets[i].wildcard
                || (memcmp(own->ip, address->ip, 16) == 0 && own->scope == address->scope)))
            return (int)i;
    }
    return -1;
}

static int flush_all(struct pktstun_engine *engine)
{
    for (uint32_t i = 0; i < engine->setup.socket_count; i++) {
        int result = pktstun_batch_flush(&engine->batches[i], engine->setup.slot);
        if (result < 0)
            return result;
    }
    return pktstun_batch_flush(&engine->frames, engine->setup.slot);
}

/* The time of respond() is paid for by a share of all time. What it took is known when the
 * loop is called again; until then nobody knows what a request will cost. */
static void update_credit(struct pktstun_engine *engine, uint64_t now)
{
    if (now <= engine->handover_clock) /* the sockets are read after the ring's time was taken */
        return;
    uint64_t earned = (now - engine->handover_clock) * engine->setup.handover_percent / 100;
    engine->handover_credit += (int64_t)(earned < HANDOVER_BURST_NS ? earned : HANDOVER_BURST_NS);
    if (engine->handover_credit > HANDOVER_BURST_NS)
        engine->handover_credit = HANDOVER_BURST_NS;
    engine->handover_clock = now;
}

static void pay_handovers(struct pktstun_engine *engine, uint64_t now)
{
    if (!engine->handover_began)
        return;
    update_credit(engine, now);
    engine->handover_credit -= (int64_t)(cpu_time() - engine->handover_began);
    engine->handover_began = 0;
}

/* Notes the frame in hand before it is looked at: the compiler may not do it later. */
static void set_frame(struct pktstun_slot *slot, uint64_t frame)
{
    __atomic_store_n(&slot->frame, frame, __ATOMIC_RELAXED);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/* Copies the datagram aside for respond(), if that has time left. */
static enum pktstun_verdict hand_over(struct pktstun_engine *engine, uint64_t now,
                                      const struct pktstun_datagram *datagram, int socket,
                                      int from_ring)
{
    update_credit(engine, now);
    int in_budget = engine->handover_credit > 0 || engine->setup.handover_percent == 100;
    if (!in_budget || engine->handover_count == PKTSTUN_MAX_HANDOVERS)
        return PKTSTUN_DROP_OVER_BUDGET;

    struct pktstun_handover *handover = &engine->handovers[engine->handover_count++];
    handover->source = datagram->source;
    handover->destination = datagram->destination;
    handover->socket = (uint32_t)socket;
    handover->from_ring = (uint32_t)from_ring;
    handover->length = (uint32_t)datagram->length;
    handover->frame = from_ring ? engine->setup.slot->frame : 0;
    memcpy(handover->data, datagram->payload, datagram->length);
    pktstun_bump(&engine->setup.slot->handovers, 1);
    return PKTSTUN_HANDOVER;
}

/* What the rate limit makes of a request that would be answered. */
static enum pktstun_verdict limit(struct pktstun_engine *engine, uint64_t now,
                                  const struct pktstun_address *source,
                                  struct pktstun_digests digests, enum pktstun_verdict verdict)
{
    enum pktstun_limit found =
        pktstun_limiter_ask(engine->setup.limiter, engine->setup.limits, source, digests, now);
    if (found == PKTSTUN_LIMIT_WITHIN)
        return verdict;
    pktstun_bump(&engine->setup.slot->over_limit, 1);
    return found == PKTSTUN_LIMIT_SHARE ? verdict : PKTSTUN_DROP_RATE_LIMITED;
}

static int is_reply(enum pktstun_verdict verdict)
{
    return verdict == PKTSTUN_SUCCESS || verdict == PKTSTUN_ERROR;
}

/* Answers into the batch; NULL stands for no socket of that address, which has the index
 * socket. The batch must have room. request: the frame, if it came through the ring. */
static enum pktstun_verdict answer(struct pktstun_engine *engine, uint64_t now,
                                   const struct pktstun_datagram *datagram, int socket,
                                   struct pktstun_batch *batch, const uint8_t *request)
{
    const struct pktstun_options *options =
        request ? engine->setup.ring_options : engine->setup.socket_options;
    uint8_t nowhere[PKTSTUN_MAX_REPLY];
    size_t length = 0;
    struct pktstun_digests digests = {0};
    if (engine->setup.limiter)
        digests = pktstun_limiter_look(engine->setup.limiter, &datagram->source);
#ifdef PKTSTUN_TRAP /* for the tests of what is promised when a frame takes a worker over */
    static const uint8_t trap[] = "pktstun trap", call[] = "pktstun call";
    if (datagram->length >= 20 && memcmp(datagram->payload + 8, trap, 12) == 0)
        __builtin_trap();
    if (datagram->length >= 20 && memcmp(datagram->payload + 8, call, 12) == 0)
        listen(0, 0);
#endif
    enum pktstun_verdict verdict = pktstun_answer(
        datagram->payload, datagram->length, &datagram->source, &datagram->destination, options,
        batch ? pktstun_batch_reply(batch) : nowhere, &length);

    if (!batch && (is_reply(verdict) || verdict == PKTSTUN_HANDOVER))
        verdict = PKTSTUN_DROP_NOT_FOR_US;
    if (engine->setup.limiter && (is_reply(verdict) || verdict == PKTSTUN_HANDOVER))
        verdict = limit(engine, now, &datagram->source, digests, verdict);
    if (is_reply(verdict) && batch == &engine->frames)
        pktstun_batch_add_frame(batch, length, request, datagram);
    else if (is_reply(verdict))
        pktstun_batch_add(batch, length, &datagram->source, &datagram->destination);
    else if (verdict == PKTSTUN_HANDOVER)
        verdict = hand_over(engine, now, datagram, socket, request != NULL);
    if (verdict != PKTSTUN_HANDOVER) /* counted when respond() has spoken */
        count_verdict(engine->setup.slot, datagram->source.family, verdict);
    return verdict;
}

/* Lets the kernel thread that receives for this CPU have its turn, if one waits (threaded NAPI,
 * ksoftirqd): a worker of a higher priority would go on until all is answered, and meanwhile the
 * receive queue, which is short, overflows. */
static void let_receive(void)
{
    sched_yield();
}

/* ---- the ring ---- */

static uint64_t cursor_of(uint64_t sequence, uint64_t frames)
{
    return sequence << PKTSTUN_CURSOR_SHIFT | frames;
}

static void set_cursor(struct pktstun_slot *slot, uint64_t sequence, uint64_t frames)
{
    __atomic_store_n(&slot->cursor, cursor_of(sequence, frames), __ATOMIC_RELEASE);
}

static uint64_t cursor_sequence(const struct pktstun_slot *slot)
{
    return slot->cursor >> PKTSTUN_CURSOR_SHIFT;
}

/* Blocks are opened in order of their index and numbered from 1, so the number tells the
 * index. */
static uint8_t *block_at(const struct pktstun_engine *engine, uint64_t sequence)
{
    uint64_t index = (sequence - 1) % engine->setup.block_count;
    return engine->setup.ring + index * engine->setup.block_size;
}

/* Sets the cursor to the oldest block that is ready, if that is another one. */
static void resynchronise(struct pktstun_engine *engine)
{
    uint64_t oldest = UINT64_MAX;
    for (uint32_t i = 0; i < engine->setup.block_count; i++) {
        const uint8_t *block = engine->setup.ring + (size_t)i * engine->setup.block_size;
        if (pktstun_block_ready(block) && pktstun_block_sequence(block) < oldest)
            oldest = pktstun_block_sequence(block);
    }
    if (oldest != UINT64_MAX && oldest != cursor_sequence(engine->setup.slot))
        set_cursor(engine->setup.slot, oldest, 0);
}

/* The worker before this one may have died between its last two steps, with the cursor
 * behind a block that is still its own. */
static void resume(struct pktstun_engine *engine)
{
    struct pktstun_slot *slot = engine->setup.slot;
    uint64_t sequence = cursor_sequence(slot);
    if (sequence == 0) {
        set_cursor(slot, 1, 0);
        return;
    }
    if (sequence > 1) {
        uint8_t *previous = block_at(engine, sequence - 1);
        if (pktstun_block_ready(previous) && pktstun_block_sequence(previous) == sequence - 1)
            pktstun_block_release(previous);
    }
}

static void close_block(struct pktstun_engine *engine)
{
    struct pktstun_slot *slot = engine->setup.slot;
    uint64_t sequence = cursor_sequence(slot);
    pktstun_bump(&slot->ring_blocks, 1);
    set_cursor(slot, sequence + 1, 0);
    pktstun_block_release(block_at(engine, sequence));
    engine->block_open = 0;
    let_receive();
}

/* A link-local address means something on its interface only (RFC 4007). */
static void set_scope(struct pktstun_address *address, const struct pktstun_frame *frame)
{
    if (address->family == 6 && address->ip[0] == 0xFE && (address->ip[1] & 0xC0) == 0x80)
        address->scope = (uint32_t)frame->ifindex;
}

/* How the reply to a frame may leave; never directly but in direct mode. */
static enum pktstun_return return_path(const struct pktstun_engine *engine,
                                       const struct pktstun_frame *frame,
                                       const struct pktstun_datagram *datagram)
{
    if (!engine->setup.routes)
        return PKTSTUN_RETURN_OTHER_WAY;
    return pktstun_return_path(&engine->routes, &datagram->source, frame->data);
}

/* Counts a reply that has to take the socket in direct mode. */
static void count_detour(struct pktstun_engine *engine, enum pktstun_return way)
{
    struct pktstun_slot *slot = engine->setup.slot;
    if (engine->setup.routes && way == PKTSTUN_RETURN_OTHER_WAY)
        pktstun_bump(&slot->other_way, 1);
    else if (engine->setup.routes && way == PKTSTUN_RETURN_OTHER_NEIGHBOUR)
        pktstun_bump(&slot->other_neighbour, 1);
}

/* Passes over a block on which workers died, without a look at its frames. */
static void skip_block(struct pktstun_engine *engine, const struct pktstun_walk *walk)
{
    struct pktstun_slot *slot = engine->setup.slot;
    pktstun_bump(&slot->received[0], walk->left);
    pktstun_bump(&slot->verdicts[0][PKTSTUN_DROP_POISON], walk->left);
}

/* Answers the frames of the block under the cursor. 0, or -errno. */
static int read_block(struct pktstun_engine *engine, uint64_t now)
{
    struct pktstun_slot *slot = engine->setup.slot;
    uint64_t sequence = cursor_sequence(slot);
    uint64_t settled = slot->cursor & ((UINT64_C(1) << PKTSTUN_CURSOR_SHIFT) - 1);
    const uint8_t *block = block_at(engine, sequence);
    struct pktstun_walk walk;
    struct pktstun_frame frame;
    struct pktstun_datagram datagram;

    int more = pktstun_walk_begin(block, engine->setup.block_size, &walk);
    if (more >= 0 && walk.left > 0 && settled == 0) /* else it was counted when it was begun */
        pktstun_bump_size(slot->receive_sizes, walk.left);
    if (slot->skip == cursor_of(sequence, PKTSTUN_WHOLE_BLOCK)) {
        skip_block(engine, &walk);
        return 0;
    }
    for (uint64_t index = 0; more >= 0; index++) {
        more = pktstun_walk_next(block, engine->setup.block_size, &walk, &frame);
        if (more <= 0)
            break;
        if (index < settled)
            continue;
        uint64_t place = cursor_of(sequence, index);
        if (slot->skip == place) {
            pktstun_bump(&slot->received[0], 1);
            count_verdict(slot, 0, PKTSTUN_DROP_POISON);
            int result = flush_all(engine);
            if (result < 0)
                return result;
            /* There is room for one such frame, and the block may have more. */
            if (engine->handover_count == 0)
                set_cursor(slot, sequence, index + 1);
            continue;
        }
        set_frame(slot, place);
        enum pktstun_verdict verdict = pktstun_parse_frame(&frame, &datagram);
        pktstun_bump(&slot->received[family_index(datagram.source.family)], 1);
        if (verdict != PKTSTUN_PASS) {
            count_verdict(slot, datagram.source.family, verdict);
            continue;
        }
        set_scope(&datagram.source, &frame);
        set_scope(&datagram.destination, &frame);

        int socket = find_socket(engine, &datagram.destination);
        enum pktstun_return way = return_path(engine, &frame, &datagram);
        struct pktstun_batch *batch = socket < 0 ? NULL
                                      : way == PKTSTUN_RETURN_DIRECT ? &engine->frames
                                                                     : &engine->batches[socket];
        if (batch && pktstun_batch_full(batch)) {
            int result = flush_all(engine);
            if (result < 0)
                return result;
            if (engine->handover_count == 0)
                set_cursor(slot, sequence, index);
        }
        if (is_reply(answer(engine, now, &datagram, socket, batch, frame.data)))
            count_detour(engine, way);
    }
    set_frame(slot, 0);
    if (more < 0)
        pktstun_bump(&slot->ring_corrupt, 1);
    return flush_all(engine);
}

/* Whether the block under the cursor can be read. */
static int block_waits(const struct pktstun_engine *engine)
{
    uint64_t sequence = cursor_sequence(engine->setup.slot);
    const uint8_t *block = block_at(engine, sequence);
    return pktstun_block_ready(block) && pktstun_block_sequence(block) == sequence;
}

/* Counts the blocks that wait, for those who watch. */
static void count_ready(struct pktstun_engine *engine, uint64_t now)
{
    struct pktstun_slot *slot = engine->setup.slot;
    uint64_t ready = 0;
    for (uint32_t i = 0; i < engine->setup.block_count; i++)
        if (pktstun_block_ready(engine->setup.ring + (size_t)i * engine->setup.block_size))
            ready++;
    engine->ring_counted = now;
    __atomic_store_n(&slot->ring_ready, ready, __ATOMIC_RELAXED);
    if (ready > slot->ring_ready_peak)
        __atomic_store_n(&slot->ring_ready_peak, ready, __ATOMIC_RELAXED);
}

/* Reads blocks that are ready. How many, or -errno. */
static int read_ring(struct pktstun_engine *engine, uint64_t now)
{
    int blocks = 0;
    if (engine->setup.routes)
        pktstun_routes_refresh(engine->setup.routes, &engine->routes);
    while (blocks < BLOCKS_PER_PASS && block_waits(engine)) {
        int result = read_block(engine, now);
        if (result < 0)
            return result;
        blocks++;
        if (engine->handover_count) {
            engine->block_open = 1;
            break;
        }
        close_block(engine);
    }
    if (blocks == 0 && engine->ring_signalled)
        resynchronise(engine);
    engine->ring_signalled = 0;
    return blocks;
}

/* ---- the sockets ---- */

/* Reads one socket once. How many datagrams, or -errno. */
static int read_socket(struct pktstun_engine *engine, uint32_t socket)
{
    struct pktstun_slot *slot = engine->setup.slot;
    int count = pktstun_receive(&engine->receiver, &engine->sockets[socket]);
    uint64_t now = monotonic();
    if (count <= 0)
        return count;
    pktstun_bump(&slot->receive_calls, 1);
    pktstun_bump_size(slot->receive_sizes, (uint32_t)count);
    pktstun_bump(&slot->socket_received, (uint64_t)count);
    for (uint32_t i = 0; i < (uint32_t)count; i++) {
        struct pktstun_datagram datagram;
        enum pktstun_verdict verdict =
            pktstun_received(&engine->receiver, i, &engine->sockets[socket], &datagram);
        pktstun_bump(&slot->received[family_index(datagram.source.family)], 1);
        if (verdict == PKTSTUN_PASS)
            answer(engine, now, &datagram, (int)socket, &engine->batches[socket], NULL);
        else
            count_verdict(slot, datagram.source.family, verdict);
    }
    int result = pktstun_batch_flush(&engine->batches[socket], slot);
    let_receive();
    return result < 0 ? result : count;
}

/* An error that waits on a descriptor keeps poll from ever sleeping until it is read. */
static void clear_error(int fd)
{
    int error;
    socklen_t size = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
}

/* Waits for descriptors and reads the sockets that are ready. How many datagrams, -errno, or
 * -EINTR when a signal came. */
static int poll_and_read(struct pktstun_engine *engine, uint64_t timeout, int with_ring)
{
    uint32_t sockets = engine->setup.socket_count;
    struct pollfd *ring = &engine->polls[sockets];
    struct timespec wait = {.tv_sec = (time_t)(timeout / NS_PER_S),
                            .tv_nsec = (long)(timeout % NS_PER_S)};
    int total = 0;

    ring->revents = 0;
    if (ppoll(engine->polls, sockets + (with_ring ? 1 : 0), &wait, NULL) < 0)
        return -errno;
    if (ring->revents & (POLLNVAL | POLLHUP))
        return -EBADF;
    if (ring->revents & POLLERR) {
        clear_error(ring->fd);
        pktstun_bump(&engine->setup.slot->ring_errors, 1);
    }
    if (ring->revents & POLLIN)
        engine->ring_signalled = 1;
    for (uint32_t i = 0; i < sockets; i++) {
        short events = engine->polls[i].revents;
        if (events & (POLLNVAL | POLLHUP))
            return -EBADF;
        if (events & POLLERR)
            clear_error(engine->polls[i].fd);
        if (events & POLLIN) {
            int count = read_socket(engine, i);
            if (count < 0)
                return count;
            total += count;
        }
    }
    return total;
}

/* ---- what Python calls ---- */

struct pktstun_engine *pktstun_engine_new(const struct pktstun_setup *setup)
{
    if (setup->socket_count == 0 || setup->socket_count > PKTSTUN_MAX_SOCKETS
        || setup->batch == 0 || setup->handover_percent > 100
        || (setup->limiter && !(setup->limits && setup->limits->host_rate
                                && setup->limits->network_rate))
        || (setup->routes && (!setup->ring || setup->frame_fd < 0))
        || (setup->ring && (!setup->ring_options || setup->block_count == 0
                            || setup->block_size > PKTSTUN_MAX_BLOCK))) {
        errno = EINVAL;
        return NULL;
    }
    struct pktstun_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return NULL;
    engine->setup = *setup;
    engine->handover_clock = monotonic();
    engine->handover_credit = setup->handover_percent ? HANDOVER_BURST_NS : 0;
    memcpy(engine->sockets, setup->sockets, setup->socket_count * sizeof *setup->sockets);
    engine->setup.sockets = engine->sockets;

    size_t stride = pktstun_reply_bound(setup->socket_options);
    if (setup->ring && pktstun_reply_bound(setup->ring_options) > stride)
        stride = pktstun_reply_bound(setup->ring_options);
    int failed = pktstun_receiver_init(&engine->receiver, setup->batch);
    if (setup->routes)
        failed |= pktstun_batch_init_frames(&engine->frames, setup->frame_fd, setup->batch, stride);
    for (uint32_t i = 0; i < setup->socket_count; i++) {
        failed |= pktstun_batch_init(&engine->batches[i], &engine->sockets[i], setup->batch,
                                     stride);
        engine->polls[i] = (struct pollfd){.fd = engine->sockets[i].fd, .events = POLLIN};
    }
    engine->polls[setup->socket_count] =
        (struct pollfd){.fd = setup->ring ? setup->ring_fd : -1, .events = POLLIN};
    if (failed) {
        pktstun_engine_free(engine);
        errno = ENOMEM;
        return NULL;
    }
    if (setup->ring)
        resume(engine);
    if (setup->limiter)
        pktstun_limiter_resume(setup->limiter, monotonic());
    return engine;
}

void pktstun_engine_free(struct pktstun_engine *engine)
{
    if (!engine)
        return;
    for (uint32_t i = 0; i < engine->setup.socket_count; i++)
        pktstun_batch_free(&engine->batches[i]);
    pktstun_batch_free(&engine->frames);
    pktstun_receiver_free(&engine->receiver);
    free(engine);
}

int pktstun_engine_run(struct pktstun_engine *engine, uint64_t budget, int draining,
                       uint64_t grace)
{
    struct pktstun_slot *slot = engine->setup.slot;
    uint64_t start = monotonic();

    pay_handovers(engine, start);
    engine->handover_count = 0;
    set_frame(slot, 0);
    if (engine->block_open)
        close_block(engine);
    if (draining && !engine->draining) {
        engine->draining = 1;
        engine->active = start;
    }
    for (;;) {
        uint64_t now = monotonic();
        int datagrams = 0, blocks = 0;
        __atomic_store_n(&slot->heartbeat, now, __ATOMIC_RELAXED);
        if (!draining && __atomic_load_n(&slot->stop, __ATOMIC_RELAXED))
            return PKTSTUN_RUN_STOP;

        if (engine->setup.ring) {
            /* First, so that a ring that is never empty leaves them their turn. */
            if (now - engine->sockets_polled >= SOCKETS_EVERY_NS) {
                engine->sockets_polled = now;
                datagrams = poll_and_read(engine, 0, 1);
                if (datagrams < 0 && datagrams != -EINTR)
                    return datagrams;
            }
            if (now - engine->ring_counted >= COUNT_EVERY_NS)
                count_ready(engine, now);
            blocks = read_ring(engine, now);
            if (blocks < 0)
                return blocks;
        }
        int spinning = now - engine->active < engine->setup.spin;
        if (engine->handover_count == 0 && blocks == 0 && datagrams == 0
            && !(spinning && engine->setup.ring)) {
            uint64_t timeout = now - start < budget && !spinning ? budget - (now - start) : 0;
            if (draining && timeout > DRAIN_POLL_NS)
                timeout = DRAIN_POLL_NS;
            datagrams = poll_and_read(engine, timeout, engine->setup.ring != NULL);
            if (datagrams < 0 && datagrams != -EINTR)
                return datagrams;
        }
        if (blocks > 0 || datagrams > 0)
            engine->active = now;
        if (engine->handover_count) {
            engine->handover_began = cpu_time();
            return PKTSTUN_RUN_HANDOVER;
        }
        if (datagrams == -EINTR)
            return PKTSTUN_RUN_SIGNAL;
        now = monotonic();
        if (now - start >= budget)
            return PKTSTUN_RUN_BUDGET;
        if (draining && now - engine->active >= grace)
            return PKTSTUN_RUN_IDLE;
    }
}

uint32_t pktstun_engine_handovers(const struct pktstun_engine *engine)
{
    return engine->handover_count;
}

const struct pktstun_handover *pktstun_engine_handover(
    const struct pktstun_engine *engine, uint32_t index)
{
    if (index >= engine->handover_count)
        return NULL;
    set_frame(engine->setup.slot, engine->handovers[index].frame);
    return &engine->handovers[index];
}

int pktstun_engine_settle(struct pktstun_engine *engine, uint32_t index,
                          enum pktstun_verdict verdict, const uint8_t *reply, size_t length,
                          const struct pktstun_address *server, uint16_t client_port)
{
    if (index >= engine->handover_count)
        return -EINVAL;
    const struct pktstun_handover *handover = &engine->handovers[index];
    struct pktstun_slot *slot = engine->setup.slot;
    count_verdict(slot, handover->source.family, verdict);
    if (!is_reply(verdict))
        return 0;
    int socket = server ? find_socket(engine, server) : (int)handover->socket;
    if (socket < 0) { /* its address was taken from the host meanwhile */
        pktstun_bump(&slot->send_errors[PKTSTUN_SEND_OTHER], 1);
        return 0;
    }
    struct pktstun_address client = handover->source;
    client.port = client_port;
    return pktstun_send_one(&engine->sockets[socket], reply, length, &client,
                            server ? server : &handover->destination, slot);
}

void pktstun_count(uint64_t *counter, uint64_t amount)
{
    __atomic_fetch_add(counter, amount, __ATOMIC_RELAXED);
}
