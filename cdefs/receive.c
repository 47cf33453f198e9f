/* The receiving half of the socket path: recvmmsg and the addresses that come with it.
 *
 * A socket that is bound to one address needs no ancillary data: requests were sent to that
 * address. On a wildcard socket the kernel tells each datagram's destination in IP_PKTINFO
 * or IPV6_PKTINFO, and the reply has to leave from there. */
#include "receive.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

/* A cache line more than the datagram: buffers at a distance of 2048 would all compete for
 * the same two sets of the first-level cache. */
enum { BUFFER_STRIDE = PKTSTUN_MAX_DATAGRAM + 64 };

struct pktstun_received_control {
    _Alignas(struct cmsghdr) uint8_t bytes[CMSG_SPACE(sizeof(struct in6_pktinfo))];
};

int pktstun_receiver_init(struct pktstun_receiver *receiver, uint32_t capacity)
{
    *receiver = (struct pktstun_receiver){
        .capacity = capacity,
        .buffers = calloc(capacity, BUFFER_STRIDE),
        .messages = calloc(capacity, sizeof *receiver->messages),
        .vectors = calloc(capacity, sizeof *receiver->vectors),
        .names = calloc(capacity, sizeof *receiver->names),
        .controls = calloc(capacity, sizeof *receiver->controls),
    };
    if (!receiver->buffers || !receiver->messages || !receiver->vectors || !receiver->names
        || !receiver->controls)
        return -1;
    for (uint32_t i = 0; i < capacity; i++) {
        receiver->vectors[i].iov_base = receiver->buffers + (size_t)i * BUFFER_STRIDE;
        receiver->vectors[i].iov_len = PKTSTUN_MAX_DATAGRAM;
        receiver->messages[i].msg_hdr = (struct msghdr){
            .msg_name = &receiver->names[i],
            .msg_iov = &receiver->vectors[i],
            .msg_iovlen = 1,
            .msg_control = &receiver->controls[i],
        };
    }
    return 0;
}

void pktstun_receiver_free(struct pktstun_receiver *receiver)
{
    free(receiver->buffers);
    free(receiver->messages);
    free(receiver->vectors);
    free(receiver->names);
    free(receiver->controls);
    *receiver = (struct pktstun_receiver){0};
}

int pktstun_receive(struct pktstun_receiver *receiver, const struct pktstun_socket *socket)
{
    /* The kernel overwrote these with what it used. */
    for (uint32_t i = 0; i < receiver->capacity; i++) {
        receiver->messages[i].msg_hdr.msg_namelen = sizeof *receiver->names;
        receiver->messages[i].msg_hdr.msg_controllen =
            socket->wildcard ? sizeof *receiver->controls : 0;
    }
    int count = recvmmsg(socket->fd, receiver->messages, receiver->capacity, MSG_DONTWAIT, NULL);
    if (count >= 0)
        return count;
    /* An error of the network (an interface went down) is not one of the descriptor. */
    return errno == EBADF || errno == ENOTSOCK || errno == EFAULT ? -errno : 0;
}

/* Overwrites the address that the socket is bound to with the one the datagram was sent to. */
static void read_destination(struct msghdr *message, struct pktstun_address *destination)
{
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header;
         header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(header), sizeof info);
            memcpy(destination->ip, &info.ipi_addr, 4);
        } else if (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;
            memcpy(&info, CMSG_DATA(header), sizeof info);
            memcpy(destination->ip, &info.ipi6_addr, 16);
            if (IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr))
                destination->scope = info.ipi6_ifindex;
        }
    }
}

enum pktstun_verdict pktstun_received(
    const struct pktstun_receiver *receiver, uint32_t index,
    const struct pktstun_socket *socket, struct pktstun_datagram *datagram)
{
    struct mmsghdr *message = &receiver->messages[index];
    const struct sockaddr_in6 *name = &receiver->names[index];

    memset(datagram, 0, sizeof *datagram);
    datagram->payload = receiver->vectors[index].iov_base;
    datagram->length = message->msg_len;
    datagram->source.family = socket->address.family;
    datagram->source.port = ntohs(name->sin6_port); /* sin_port lies at the same place */
    if (socket->address.family == 4) {
        struct sockaddr_in name4;
        memcpy(&name4, name, sizeof name4);
        memcpy(datagram->source.ip, &name4.sin_addr, 4);
    } else {
        memcpy(datagram->source.ip, &name->sin6_addr, 16);
        datagram->source.scope = name->sin6_scope_id;
        /* The socket is IPv6's alone, so this was in an IPv6 header. The kernel lets it in, but
         * no reply out (RFC 6890 section 2.2.3: neither source nor destination on any wire). */
        if (IN6_IS_ADDR_V4MAPPED(&name->sin6_addr))
            return PKTSTUN_DROP_BAD_IP;
    }
    datagram->destination = socket->address;
    if (socket->wildcard)
        read_destination(&message->msg_hdr, &datagram->destination);
    return message->msg_hdr.msg_flags & MSG_TRUNC ? PKTSTUN_DROP_TOO_LONG : PKTSTUN_PASS;
}
