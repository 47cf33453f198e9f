/* Replies that wait for one sendmmsg on one socket. */
#ifndef PKTSTUN_BATCH_H
#define PKTSTUN_BATCH_H

#include <sys/socket.h>

#include "engine.h"

struct pktstun_batch {
    int fd;
    uint8_t wildcard;             /* the source address goes along with each message */
    uint32_t used, capacity;
    size_t stride;                /* bytes of a buffer */
    size_t headroom;              /* of these, for headers in front of the reply */
    uint8_t *buffers;
    struct mmsghdr *messages;
    struct iovec *vectors;
    struct sockaddr_in6 *names;   /* large enough for sockaddr_in too; NULL for frames */
    struct pktstun_control *controls;
};

/* A batch of datagrams for a UDP socket, of replies of at most longest bytes. 0, or -1 when
 * there is no memory; pktstun_batch_free either way. */
int pktstun_batch_init(struct pktstun_batch *batch, const struct pktstun_socket *socket,
                       uint32_t capacity, size_t longest);

/* A batch of frames for a packet socket that is bound to an interface. As above. */
int pktstun_batch_init_frames(struct pktstun_batch *batch, int fd, uint32_t capacity,
                              size_t longest);
void pktstun_batch_free(struct pktstun_batch *batch);

static inline int pktstun_batch_full(const struct pktstun_batch *batch)
{
    return batch->used == batch->capacity;
}

/* Where the next reply goes; the batch must not be full. */
static inline uint8_t *pktstun_batch_reply(const struct pktstun_batch *batch)
{
    return batch->buffers + batch->used * batch->stride + batch->headroom;
}

/* Adds what stands there: to the client, from the address it sent to. */
void pktstun_batch_add(struct pktstun_batch *batch, size_t length,
                       const struct pktstun_address *client,
                       const struct pktstun_address *server);

/* Adds what stands there to a batch of frames: back the way the request came. */
void pktstun_batch_add_frame(struct pktstun_batch *batch, size_t length, const uint8_t *request,
                             const struct pktstun_datagram *datagram);

/* Sends all and empties the batch. A message that cannot be sent costs its counter in the
 * slot and not its neighbours. 0, or -errno when the descriptor is unusable. */
int pktstun_batch_flush(struct pktstun_batch *batch, struct pktstun_slot *slot);

/* Sends one reply of any length at once, with the same counters. */
int pktstun_send_one(const struct pktstun_socket *socket, const uint8_t *reply, size_t length,
                     const struct pktstun_address *client,
                     const struct pktstun_address *server, struct pktstun_slot *slot);

/* Adds to a counter that another process may read meanwhile. */
static inline void pktstun_bump(uint64_t *counter, uint64_t amount)
{
    __atomic_store_n(counter, *counter + amount, __ATOMIC_RELAXED);
}

/* Counts a batch of so many, which are some, by the power of two. */
static inline void pktstun_bump_size(uint64_t sizes[PKTSTUN_SIZES], uint32_t count)
{
    uint32_t power = 31 - (uint32_t)__builtin_clz(count);
    pktstun_bump(&sizes[power < PKTSTUN_SIZES ? power : PKTSTUN_SIZES - 1], 1);
}

#endif
