/* The batched sender against a kernel that follows a script.
 *
 *   kind | capacity | for each round: count, for each message: family and length, calls
 *
 * sendmmsg, poll and clock_gettime are replaced when linking (--wrap). What they do is read off the
 * input when they are called: a byte per sendmmsg is how many messages it takes or the error that
 * it ends with, a byte per poll how long it takes by the clock, which nothing else moves. Where the
 * input has ended all is sent, so every script ends.
 *
 * The claims are made from the kernel's side: which messages were offered, and with what in them.
 * A message is settled when it was sent, or refused by an error that is about it. */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "batch.h"
#include "clock.h"
#include "harness.h"
#include "reply.h"

enum { MOST = 16, LONGEST = 64, FD = 77, ROUNDS = 4, WAIT_MS = 1 };
enum kind { PLAIN, WILDCARD, FRAMES, ONE };

static struct script {
    struct input input;
    int running;
    enum kind kind;
    const struct mmsghdr *messages; /* NULL: there is one, wherever it is */
    uint32_t total, next;
    unsigned calls, interrupts, polls;
    int stopped;          /* the errno that ended the batch, or 0 */
    int waiting;          /* EAGAIN was the last word */
    int waited_in_vain;   /* and it was before, with nothing but a wait between */
    uint64_t now, waited, send_calls, sent, refused[PKTSTUN_ROOM];
    size_t lengths[MOST];
    struct pktstun_address clients[MOST], servers[MOST];
} script;

/* What stands in message i, and in no other. */
static uint8_t mark(uint32_t i)
{
    return (uint8_t)(0x40 + i);
}

static const struct {
    int error;
    enum pktstun_send_error counter;
} errors[] = {
    {EAGAIN, PKTSTUN_SEND_EAGAIN},
    {EINTR, PKTSTUN_SEND_ERRORS},
    {ENOBUFS, PKTSTUN_SEND_ENOBUFS},
    {ENOMEM, PKTSTUN_SEND_ENOBUFS},
    {EPERM, PKTSTUN_SEND_EPERM},
    {EACCES, PKTSTUN_SEND_EACCES},
    {EINVAL, PKTSTUN_SEND_EINVAL},
    {ENETUNREACH, PKTSTUN_SEND_ENETUNREACH},
    {EHOSTUNREACH, PKTSTUN_SEND_EHOSTUNREACH},
    {ENETDOWN, PKTSTUN_SEND_ENETDOWN},
    {EMSGSIZE, PKTSTUN_SEND_OTHER},
    {ECONNREFUSED, PKTSTUN_SEND_OTHER},
    {EBADF, PKTSTUN_SEND_ERRORS},
    {ENOTSOCK, PKTSTUN_SEND_ERRORS},
    {EFAULT, PKTSTUN_SEND_ERRORS},
};

static void check_name(const struct msghdr *header, const struct pktstun_address *client)
{
    if (client->family == 4) {
        struct sockaddr_in name;
        CLAIM(header->msg_namelen == sizeof name, "a name of %u bytes", header->msg_namelen);
        memcpy(&name, header->msg_name, sizeof name);
        claim_initialized(&name, sizeof name);
        CLAIM(name.sin_family == AF_INET && name.sin_port == htons(client->port)
                  && memcmp(&name.sin_addr, client->ip, 4) == 0, "to another client");
    } else {
        struct sockaddr_in6 name;
        CLAIM(header->msg_namelen == sizeof name, "a name of %u bytes", header->msg_namelen);
        memcpy(&name, header->msg_name, sizeof name);
        claim_initialized(&name, sizeof name);
        CLAIM(name.sin6_family == AF_INET6 && name.sin6_port == htons(client->port)
                  && name.sin6_scope_id == client->scope
                  && memcmp(&name.sin6_addr, client->ip, 16) == 0, "to another client");
    }
}

static void check_control(const struct msghdr *header, const struct pktstun_address *server)
{
    struct msghdr copy = *header;
    struct cmsghdr *control = CMSG_FIRSTHDR(&copy);
    CLAIM(control, "no source address");
    claim_initialized(header->msg_control, header->msg_controllen);
    if (server->family == 4) {
        struct in_pktinfo info;
        memcpy(&info, CMSG_DATA(control), sizeof info);
        CLAIM(control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_PKTINFO
                  && control->cmsg_len == CMSG_LEN(sizeof info)
                  && memcmp(&info.ipi_spec_dst, server->ip, 4) == 0 && info.ipi_ifindex == 0,
              "from another address");
    } else {
        struct in6_pktinfo info;
        memcpy(&info, CMSG_DATA(control), sizeof info);
        CLAIM(control->cmsg_level == IPPROTO_IPV6 && control->cmsg_type == IPV6_PKTINFO
                  && control->cmsg_len == CMSG_LEN(sizeof info)
                  && memcmp(&info.ipi6_addr, server->ip, 16) == 0
                  && info.ipi6_ifindex == server->scope, "from another address");
    }
    CLAIM(!CMSG_NXTHDR(&copy, control), "more than the source address");
}

static void check_message(const struct msghdr *header, uint32_t i)
{
    const struct iovec *vector = header->msg_iov;
    CLAIM(header->msg_iovlen == 1, "%zu parts", header->msg_iovlen);
    const uint8_t *bytes = vector->iov_base;
    size_t headers = 0;
    claim_initialized(bytes, vector->iov_len);
    if (script.kind == FRAMES) {
        headers = script.clients[i].family == 4 ? PKTSTUN_IPV4_HEADERS : PKTSTUN_IPV6_HEADERS;
        CLAIM(!header->msg_name && !header->msg_control, "a frame has no address");
    } else {
        check_name(header, &script.clients[i]);
        if (script.kind == WILDCARD)
            check_control(header, &script.servers[i]);
        else
            CLAIM(!header->msg_control && !header->msg_controllen, "a source address");
    }
    CLAIM(vector->iov_len == headers + script.lengths[i], "%zu bytes", vector->iov_len);
    for (size_t at = headers; at < vector->iov_len; at++)
        CLAIM(bytes[at] == mark(i), "byte %zu of message %u is another's", at, i);
}

int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags);
int __wrap_poll(struct pollfd *polled, nfds_t count, int timeout);
int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

int __wrap_sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    CLAIM(fd == FD && flags == MSG_DONTWAIT, "sendmmsg(%d, flags %d)", fd, flags);
    CLAIM(!script.stopped, "one call more after errno %d", script.stopped);
    CLAIM(!script.messages || messages == script.messages + script.next,
          "message %td is offered, %u is next", messages - script.messages, script.next);
    CLAIM(count && count == script.total - script.next, "%u messages are offered", count);
    for (uint32_t i = 0; i < count; i++)
        check_message(&messages[i].msg_hdr, script.next + i);

    script.calls++;
    /* A call settles a message, is interrupted, or comes before or after a wait. */
    CLAIM(script.calls <= 2 * script.total + script.interrupts + 1, "%u calls", script.calls);
    int was_waiting = script.waiting;
    script.waiting = 0;
    uint8_t word = take8(&script.input);
    if (word < 128) {
        uint32_t sent = word ? 1 + (word - 1u) % count : count;
        script.next += sent;
        script.sent += sent;
        script.send_calls++;
        errno = EBADF; /* a success leaves whatever was there */
        return (int)sent;
    }
    size_t which = word % (sizeof errors / sizeof *errors);
    int error = errors[which].error;
    if (error == EINTR) {
        script.interrupts++;
        script.waiting = was_waiting;
    } else if (error == EAGAIN) {
        script.waiting = 1;
        script.waited_in_vain = was_waiting;
    } else if (errors[which].counter == PKTSTUN_SEND_ERRORS) {
        script.stopped = error;
    } else {
        script.refused[errors[which].counter]++;
        script.next++;
    }
    errno = error;
    return -1;
}

int __wrap_poll(struct pollfd *polled, nfds_t count, int timeout)
{
    CLAIM(count == 1 && polled->fd == FD && polled->events == POLLOUT, "poll for another");
    CLAIM(timeout == WAIT_MS && script.waiting && !script.waited_in_vain, "nothing to wait for");
    CLAIM(script.waited < WAIT_MS * UINT64_C(1000000), "a wait too many");
    script.polls++;
    uint64_t took = take8(&script.input) * UINT64_C(8000); /* at most 2 ms */
    script.now += took;
    script.waited += took;
    return took < WAIT_MS * UINT64_C(1000000);
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    if (!script.running)
        return __real_clock_gettime(clock, now);
    *now = (struct timespec){.tv_sec = (time_t)(script.now / NS_PER_S),
                             .tv_nsec = (long)(script.now % NS_PER_S)};
    return 0;
}

static struct pktstun_address numbered(uint8_t family, uint32_t i, uint8_t kind)
{
    struct pktstun_address address = {.family = family, .port = (uint16_t)(1000 + i)};
    memset(address.ip, (int)(kind + i), family == 4 ? 4 : 16);
    address.scope = family == 6 ? i : 0;
    return address;
}

/* Notes what message i shall be; writes its payload. */
static void prepare(uint32_t i, uint8_t *payload)
{
    uint8_t word = take8(&script.input);
    uint8_t family = word & 1 ? 6 : 4;
    script.lengths[i] = (word >> 1) % (LONGEST + 1);
    script.clients[i] = numbered(family, i, 0x10);
    script.servers[i] = numbered(family, i, 0x80);
    memset(payload, mark(i), script.lengths[i]);
}

static void begin_round(enum kind kind, uint32_t total, const struct mmsghdr *messages)
{
    struct input input = script.input;
    script = (struct script){.input = input, .kind = kind, .total = total, .messages = messages};
}

/* Holds what was returned and counted against what has happened. */
static void check_round(int result, const struct pktstun_slot *slot)
{
    uint64_t refused = 0, dropped = 0;
    CLAIM(result == -script.stopped, "returned %d", result);
    CLAIM(slot->sent == script.sent, "%ju are counted as sent", (uintmax_t)slot->sent);
    CLAIM(slot->send_calls == script.send_calls, "%ju calls", (uintmax_t)slot->send_calls);
    for (size_t i = 0; i < PKTSTUN_ROOM; i++) {
        if (i == PKTSTUN_SEND_EAGAIN)
            dropped = slot->send_errors[i];
        else
            CLAIM(slot->send_errors[i] == script.refused[i], "error %zu", i);
        refused += script.refused[i];
    }
    CLAIM(script.sent + refused == script.next, "message %u is next", script.next);
    if (script.stopped)
        return;
    /* All are settled, or the buffer stayed full. */
    CLAIM(script.next + dropped == script.total, "%u are settled", script.next);
    CLAIM(!dropped || (script.waiting && (script.waited_in_vain || script.polls)),
          "dropped without a wait");
}

static void add(struct pktstun_batch *batch, enum kind kind, uint32_t i)
{
    prepare(i, pktstun_batch_reply(batch));
    if (kind != FRAMES) {
        pktstun_batch_add(batch, script.lengths[i], &script.clients[i], &script.servers[i]);
        return;
    }
    struct pktstun_datagram datagram = {.source = script.clients[i],
                                        .destination = script.servers[i]};
    size_t headers =
        datagram.source.family == 4 ? PKTSTUN_IPV4_HEADERS : PKTSTUN_IPV6_HEADERS;
    struct exact request = exact_new(headers, 0, 0);
    memset(request.bytes, (int)i, headers);
    pktstun_batch_add_frame(batch, script.lengths[i], request.bytes, &datagram);
    exact_free(&request);
}

static void run_batch(enum kind kind, uint32_t capacity)
{
    struct pktstun_socket socket = {.fd = FD, .wildcard = kind == WILDCARD};
    struct pktstun_batch batch;
    int made = kind == FRAMES ? pktstun_batch_init_frames(&batch, FD, capacity, LONGEST)
                              : pktstun_batch_init(&batch, &socket, capacity, LONGEST);
    CLAIM(made == 0, "no batch");
    for (int round = 0; round < ROUNDS; round++) {
        static struct pktstun_slot slot;
        uint32_t total = take8(&script.input) % (capacity + 1);
        memset(&slot, 0, sizeof slot);
        begin_round(kind, total, batch.messages);
        for (uint32_t i = 0; i < total; i++) {
            CLAIM(!pktstun_batch_full(&batch), "full at %u", i);
            add(&batch, kind, i);
        }
        CLAIM(pktstun_batch_full(&batch) == (total == capacity), "full or not");
        script.running = 1;
        int result = pktstun_batch_flush(&batch, &slot);
        script.running = 0;
        check_round(result, &slot);
        CLAIM(batch.used == 0, "%u are left", batch.used);
    }
    pktstun_batch_free(&batch);
}

static void run_one(int wildcard)
{
    static struct pktstun_slot slot;
    struct pktstun_socket socket = {.fd = FD, .wildcard = wildcard != 0};
    struct exact reply = exact_new(LONGEST, 0, 0);
    memset(&slot, 0, sizeof slot);
    begin_round(wildcard ? WILDCARD : ONE, 1, NULL);
    prepare(0, reply.bytes);
    script.running = 1;
    int result = pktstun_send_one(&socket, reply.bytes, script.lengths[0], &script.clients[0],
                                  &script.servers[0], &slot);
    script.running = 0;
    check_round(result, &slot);
    exact_free(&reply);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    script = (struct script){.input = {data, size}};
    uint8_t kind = take8(&script.input);
    uint32_t capacity = 1 + take8(&script.input) % MOST;
    if (kind % 4 == ONE)
        run_one(kind & 4);
    else
        run_batch(kind % 4, capacity);
    return 0;
}
