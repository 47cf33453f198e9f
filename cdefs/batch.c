/* The batched sender: sendmmsg, and what to do when it fails half way.
 *
 * sendmmsg returns how many messages it sent and forgets the error that stopped it, unless
 * the first message failed. So the loop goes on from the first unsent message; a return of
 * -1 then speaks of exactly that one, which is counted and skipped. Nearly all of these
 * errors can be caused by whoever sends a request (an unroutable source, a firewall rule
 * on the way out), so none of them may cost the other clients their replies. */
#include "batch.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "reply.h"

/* How long a full send buffer is waited for, in all of a batch. Requests behind are worth more
 * than replies ahead, so then, or when waiting was of no use, the rest of the batch is dropped
 * and counted. */
enum { SEND_BUFFER_WAIT_MS = 1 };

struct pktstun_control {
    _Alignas(struct cmsghdr) uint8_t bytes[CMSG_SPACE(sizeof(struct in6_pktinfo))];
};

static socklen_t set_name(struct sockaddr_in6 *name, const struct pktstun_address *address)
{
    memset(name, 0, sizeof *name);
    if (address->family == 4) {
        struct sockaddr_in name4 = {.sin_family = AF_INET, .sin_port = htons(address->port)};
        memcpy(&name4.sin_addr, address->ip, 4);
        memcpy(name, &name4, sizeof name4);
        return sizeof name4;
    }
    name->sin6_family = AF_INET6;
    name->sin6_port = htons(address->port);
    name->sin6_scope_id = address->scope;
    memcpy(&name->sin6_addr, address->ip, 16);
    return sizeof *name;
}

/* The source address of a message on a wildcard socket (ip(7), ipv6(7)). The interface is
 * left to the routing table, except for link-local addresses, which need one. */
static size_t set_control(struct pktstun_control *control, const struct pktstun_address *server)
{
    struct cmsghdr *header = (struct cmsghdr *)(void *)control->bytes;
    memset(control, 0, sizeof *control);
    if (server->family == 4) {
        struct in_pktinfo info = {0};
        memcpy(&info.ipi_spec_dst, server->ip, 4);
        header->cmsg_level = IPPROTO_IP;
        header->cmsg_type = IP_PKTINFO;
        header->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(header), &info, sizeof info);
        return CMSG_SPACE(sizeof info);
    }
    struct in6_pktinfo info = {.ipi6_ifindex = server->scope};
    memcpy(&info.ipi6_addr, server->ip, 16);
    header->cmsg_level = IPPROTO_IPV6;
    header->cmsg_type = IPV6_PKTINFO;
    header->cmsg_len = CMSG_LEN(sizeof info);
    memcpy(CMSG_DATA(header), &info, sizeof info);
    return CMSG_SPACE(sizeof info);
}

static int allocate(struct pktstun_batch *batch, size_t longest)
{
    /* A cache line each at least, so that replies do not share one. */
    batch->stride = (batch->headroom + longest + 63) & ~(size_t)63;
    batch->buffers = calloc(batch->capacity, batch->stride);
    batch->messages = calloc(batch->capacity, sizeof *batch->messages);
    batch->vectors = calloc(batch->capacity, sizeof *batch->vectors);
    if (!batch->buffers || !batch->messages || !batch->vectors)
        return -1;
    for (uint32_t i = 0; i < batch->capacity; i++) {
        batch->vectors[i].iov_base = batch->buffers + i * batch->stride;
        batch->messages[i].msg_hdr.msg_iov = &batch->vectors[i];
        batch->messages[i].msg_hdr.msg_iovlen = 1;
    }
    return 0;
}

int pktstun_batch_init(struct pktstun_batch *batch, const struct pktstun_socket *socket,
                       uint32_t capacity, size_t longest)
{
    *batch = (struct pktstun_batch){
        .fd = socket->fd,
        .wildcard = socket->wildcard,
        .capacity = capacity,
        .names = calloc(capacity, sizeof *batch->names),
        .controls = calloc(capacity, sizeof *batch->controls),
    };
    if (allocate(batch, longest) < 0 || !batch->names || !batch->controls)
        return -1;
    for (uint32_t i = 0; i < capacity; i++) {
        batch->messages[i].msg_hdr.msg_name = &batch->names[i];
        if (batch->wildcard)
            batch->messages[i].msg_hdr.msg_control = &batch->controls[i];
    }
    return 0;
}

int pktstun_batch_init_frames(struct pktstun_batch *batch, int fd, uint32_t capacity,
                              size_t longest)
{
    *batch = (struct pktstun_batch){
        .fd = fd, .capacity = capacity, .headroom = PKTSTUN_IPV6_HEADERS};
    return allocate(batch, longest);
}

void pktstun_batch_free(struct pktstun_batch *batch)
{
    free(batch->buffers);
    free(batch->messages);
    free(batch->vectors);
    free(batch->names);
    free(batch->controls);
    *batch = (struct pktstun_batch){0};
}

void pktstun_batch_add(struct pktstun_batch *batch, size_t length,
                       const struct pktstun_address *client,
                       const struct pktstun_address *server)
{
    uint32_t i = batch->used++;
    struct msghdr *message = &batch->messages[i].msg_hdr;
    batch->vectors[i].iov_len = length;
    message->msg_namelen = set_name(&batch->names[i], client);
    if (batch->wildcard)
        message->msg_controllen = set_control(&batch->controls[i], server);
}

void pktstun_batch_add_frame(struct pktstun_batch *batch, size_t length, const uint8_t *request,
                             const struct pktstun_datagram *datagram)
{
    uint8_t *payload = pktstun_batch_reply(batch);
    size_t headers = pktstun_write_reply_headers(request, datagram, payload, length);
    struct iovec *vector = &batch->vectors[batch->used++];
    vector->iov_base = payload - headers;
    vector->iov_len = headers + length;
}

static enum pktstun_send_error classify(int error)
{
    switch (error) {
    case EAGAIN:
        return PKTSTUN_SEND_EAGAIN;
    case ENOBUFS:
    case ENOMEM:
        return PKTSTUN_SEND_ENOBUFS;
    case EPERM:
        return PKTSTUN_SEND_EPERM;
    case EACCES:
        return PKTSTUN_SEND_EACCES;
    case EINVAL:
        return PKTSTUN_SEND_EINVAL;
    case ENETUNREACH:
        return PKTSTUN_SEND_ENETUNREACH;
    case EHOSTUNREACH:
        return PKTSTUN_SEND_EHOSTUNREACH;
    case ENETDOWN:
        return PKTSTUN_SEND_ENETDOWN;
    default:
        return PKTSTUN_SEND_OTHER;
    }
}

static int send_messages(int fd, struct mmsghdr *messages, uint32_t count,
                         struct pktstun_slot *slot)
{
    uint64_t waited = 0; /* in all, ns */
    int stalled = 0;     /* nothing was sent since the last wait */
    uint32_t next = 0;
    while (next < count) {
        int sent = sendmmsg(fd, messages + next, count - next, MSG_DONTWAIT);
        int error = errno;
        if (sent > 0) {
            pktstun_bump(&slot->send_calls, 1);
            pktstun_bump_size(slot->send_sizes, (uint32_t)sent);
            pktstun_bump(&slot->sent, (uint64_t)sent);
            next += (uint32_t)sent;
            stalled = 0;
            continue;
        }
        if (error == EINTR)
            continue;
        if (error == EBADF || error == ENOTSOCK || error == EFAULT)
            return -error;
        if (error == EAGAIN) {
            if (!stalled && waited < SEND_BUFFER_WAIT_MS * (NS_PER_S / 1000)) {
                struct pollfd writable = {.fd = fd, .events = POLLOUT};
                uint64_t began = monotonic();
                poll(&writable, 1, SEND_BUFFER_WAIT_MS);
                waited += monotonic() - began;
                stalled = 1;
                continue;
            }
            pktstun_bump(&slot->send_errors[PKTSTUN_SEND_EAGAIN], count - next);
            return 0;
        }
        pktstun_bump(&slot->send_errors[classify(error)], 1);
        next++;
    }
    return 0;
}

int pktstun_batch_flush(struct pktstun_batch *batch, struct pktstun_slot *slot)
{
    uint32_t count = batch->used;
    batch->used = 0;
    return count ? send_messages(batch->fd, batch->messages, count, slot) : 0;
}

int pktstun_send_one(const struct pktstun_socket *socket, const uint8_t *reply, size_t length,
                     const struct pktstun_address *client,
                     const struct pktstun_address *server, struct pktstun_slot *slot)
{
    struct sockaddr_in6 name;
    struct pktstun_control control;
    struct iovec vector = {.iov_base = (void *)(uintptr_t)reply, .iov_len = length};
    struct mmsghdr message = {.msg_hdr = {
        .msg_name = &name,
        .msg_namelen = set_name(&name, client),
        .msg_iov = &vector,
        .msg_iovlen = 1,
    }};
    if (socket->wildcard) {
        message.msg_hdr.msg_control = &control;
        message.msg_hdr.msg_controllen = set_control(&control, server);
    }
    return send_messages(socket->fd, &message, 1, slot);
}
