/* recvmmsg: many datagrams of one UDP socket in one call. */
#ifndef PKTSTUN_RECEIVE_H
#define PKTSTUN_RECEIVE_H

#include <sys/socket.h>

#include "engine.h"

struct pktstun_receiver {
    uint32_t capacity;
    uint8_t *buffers;
    struct mmsghdr *messages;
    struct iovec *vectors;
    struct sockaddr_in6 *names;
    struct pktstun_received_control *controls;
};

int pktstun_receiver_init(struct pktstun_receiver *receiver, uint32_t capacity);
void pktstun_receiver_free(struct pktstun_receiver *receiver);

/* Datagrams that were read, 0 when none waits, or -errno when the descriptor is unusable. */
int pktstun_receive(struct pktstun_receiver *receiver, const struct pktstun_socket *socket);

/* The index-th of them: PKTSTUN_PASS, or PKTSTUN_DROP_TOO_LONG when it did not fit. */
enum pktstun_verdict pktstun_received(
    const struct pktstun_receiver *receiver, uint32_t index,
    const struct pktstun_socket *socket, struct pktstun_datagram *datagram);

#endif
