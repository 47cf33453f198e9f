/* STUN requests at a fixed rate, whatever becomes of them (open loop), and their replies.
 *
 * Request i is due at start + i / rate. Every pass of the loop sends what is due by now, a
 * batch at most, reads a block of replies, and spins or sleeps until something is due. A
 * generator that falls behind sends later, never less and silently: latency counts from when
 * a request was due, so that the generator's own delays are in it, and what was sent late or
 * not at all is counted.
 *
 * Nothing is remembered of a request but one bit, for duplicates. Its number (which run, and
 * which place in the run) goes through a keyed permutation of 64 bits, and the result through
 * a keyed hash; both together are the transaction id. A reply thus gives its number back, and
 * the number gives the time at which the request was due, and the address and port that it
 * came from, since these are a keyed hash of the number too. The mixing is cheap and guards
 * against mistakes of a server, not against one that wants to deceive.
 *
 * A reply's latency ends at the ring's timestamp (CLOCK_REALTIME, when the frame arrived): it
 * does not matter when it is read. The two clocks are slewed alike, so that their difference
 * is constant until somebody sets the time; it is measured again for each slice. */
#include "load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "bytes.h"
#include "clock.h"

/* Pauses longer than SLEEP are slept through, but for the last part, and looked up from in
 * time for the ring to be read. */
#define SLEEP UINT64_C(200000)
#define SPIN UINT64_C(100000)
#define LONGEST_SLEEP UINT64_C(1000000)

enum {
    ETHERNET_HEADER = 14,
    IPV4_HEADER = 20,
    IPV6_HEADER = 40,
    UDP_HEADER = 8,
    NEXT_UDP = 17,
    HOP_LIMIT = 64,
    IPV4_DONT_FRAGMENT = 0x4000,
    FIRST_PORT = 1024,
    PORTS = 65536 - FIRST_PORT,

    STUN_HEADER = 20,
    UNKNOWN_REQUIRED = 0x7FFF, /* RFC 8489 section 14 */
    UNKNOWN_OPTIONAL = 0xFFFF,
    STUN_ID = 8,
    BINDING_REQUEST = 0x0001,
    BINDING_SUCCESS = 0x0101,
    BINDING_ERROR = 0x0111,
    XOR_MAPPED_ADDRESS = 0x0020,

    FRAME_STRIDE = 128,
};

static const uint32_t MAGIC_COOKIE = 0x2112A442;

struct pktstun_load {
    struct pktstun_load_setup setup;
    uint32_t host_bits;     /* of the prefix that vary */
    size_t address_length;
    size_t udp;             /* offset of the UDP header */
    size_t length;          /* of a frame */
    uint8_t template[PKTSTUN_LOAD_REQUEST];
    uint64_t ip_sum;        /* sums of the template, checksum fields not filled in */
    uint64_t udp_sum;
    uint32_t block;         /* of the ring, to be read next */

    uint32_t run;
    uint64_t rate;
    uint64_t start;         /* CLOCK_MONOTONIC */
    uint64_t duration;
    uint64_t grace;
    uint64_t total;         /* requests of the run */
    uint64_t next;          /* the first one not yet sent */
    int sending;
    uint64_t finish;        /* end of the grace time, once sending has ended */
    uint64_t realtime;      /* CLOCK_REALTIME - CLOCK_MONOTONIC */
    uint8_t *seen;          /* a bit for each request */
    struct pktstun_load_counts counts;

    uint8_t frames[PKTSTUN_LOAD_BATCH][FRAME_STRIDE];
    struct iovec vectors[PKTSTUN_LOAD_BATCH];
    struct mmsghdr messages[PKTSTUN_LOAD_BATCH];
};

/* CLOCK_REALTIME - CLOCK_MONOTONIC, from the attempt that was interrupted least. */
static uint64_t realtime_offset(void)
{
    uint64_t offset = 0;
    uint64_t shortest = UINT64_MAX;
    for (int attempt = 0; attempt < 5; attempt++) {
        uint64_t before = monotonic();
        uint64_t realtime = clock_ns(CLOCK_REALTIME);
        uint64_t took = monotonic() - before;
        if (took < shortest) {
            shortest = took;
            offset = realtime - before - took / 2;
        }
    }
    return offset;
}

/* --- What a number stands for --- */

/* Odd numbers without a pattern (2^64 over the golden ratio; a multiplier of Pelle Evensen's
 * rrmxmx), so that multiplication can be undone. */
#define MULTIPLY_1 UINT64_C(0x9E3779B97F4A7C15)
#define DIVIDE_1 UINT64_C(0xF1DE83E19937733D)
#define MULTIPLY_2 UINT64_C(0xD6E8FEB86659FD93)
#define DIVIDE_2 UINT64_C(0xCFEE444D8B59A89B)
_Static_assert(MULTIPLY_1 * DIVIDE_1 == 1 && MULTIPLY_2 * DIVIDE_2 == 1, "inverses");

static uint64_t mix(uint64_t value)
{
    value *= MULTIPLY_1;
    value ^= value >> 32; /* its own inverse */
    value *= MULTIPLY_2;
    return value ^ value >> 32;
}

static uint64_t unmix(uint64_t value)
{
    value ^= value >> 32;
    value *= DIVIDE_2;
    value ^= value >> 32;
    return value * DIVIDE_1;
}

static uint64_t scrambled(const uint64_t *keys, uint64_t number)
{
    return mix(number ^ keys[0]) ^ keys[1];
}

static uint32_t tag(const uint64_t *keys, uint64_t scrambled_number)
{
    return (uint32_t)mix(scrambled_number ^ keys[2]);
}

static void store64(uint8_t *bytes, uint64_t value)
{
    store32(bytes, (uint32_t)(value >> 32));
    store32(bytes + 4, (uint32_t)value);
}

static uint64_t load64(const uint8_t *bytes)
{
    return (uint64_t)load32(bytes) << 32 | load32(bytes + 4);
}

void pktstun_load_id(const uint64_t *keys, uint64_t number, uint8_t *id)
{
    uint64_t value = scrambled(keys, number);
    store64(id, value);
    store32(id + 8, tag(keys, value));
}

int pktstun_load_number(const uint64_t *keys, const uint8_t *id, uint64_t *number)
{
    uint64_t value = load64(id);
    if (load32(id + 8) != tag(keys, value))
        return 0;
    *number = unmix(value ^ keys[1]) ^ keys[0];
    return 1;
}

static uint64_t number_at(const struct pktstun_load *load, uint32_t place)
{
    return (uint64_t)load->run << 32 | place;
}

/* The address and port that a request comes from. Neither the prefix's first address nor its
 * last one, which may mean all hosts; never the server's port, so that on loopback, where
 * requests are seen too, the filter tells them from replies. */
static uint16_t source_of(const struct pktstun_load *load, uint64_t number, uint8_t *ip)
{
    uint64_t random = mix(scrambled(load->setup.keys, number) ^ load->setup.keys[3]);
    memcpy(ip, load->setup.source.ip, 16);
    if (load->host_bits) {
        uint64_t last = UINT64_MAX >> (64 - load->host_bits);
        uint64_t host = random >> (64 - load->host_bits);
        if (load->host_bits > 1)
            host = host == 0 ? 1 : host == last ? last - 1 : host;
        if (load->address_length == 4)
            store32(ip, load32(ip) | (uint32_t)host);
        else
            store64(ip + 8, load64(ip + 8) | host);
    }
    uint16_t port = (uint16_t)(FIRST_PORT + ((mix(random) >> 32) * PORTS >> 32));
    return port == load->setup.server.port ? port ^ 1 : port;
}

/* --- Requests --- */

/* Adds an even number of bytes to a ones' complement sum, in this machine's byte order: the
 * sum then is in that order as well (RFC 1071 section 2 (B)). */
static uint64_t add(uint64_t sum, const uint8_t *bytes, size_t length)
{
    for (size_t at = 0; at < length; at += 2) {
        uint16_t word;
        memcpy(&word, bytes + at, sizeof word);
        sum += word;
    }
    return sum;
}

static void store_checksum(uint8_t *field, uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xFFFF) + (sum >> 16);
    uint16_t value = (uint16_t)~sum;
    memcpy(field, &value, sizeof value);
}

static void make_template(struct pktstun_load *load)
{
    const struct pktstun_load_setup *setup = &load->setup;
    uint8_t *ip = load->template + ETHERNET_HEADER;
    size_t attributes = setup->odd_every ? 4 : 0;
    size_t payload = UDP_HEADER + STUN_HEADER + attributes;
    memcpy(load->template, setup->destination_mac, 6);
    memcpy(load->template + 6, setup->source_mac, 6);
    if (load->address_length == 4) {
        store16(load->template + 12, 0x0800);
        ip[0] = 0x45;
        store16(ip + 2, (uint16_t)(IPV4_HEADER + payload));
        store16(ip + 6, IPV4_DONT_FRAGMENT);
        ip[8] = HOP_LIMIT;
        ip[9] = NEXT_UDP;
        memcpy(ip + 16, setup->server.ip, 4);
        load->ip_sum = add(0, ip, IPV4_HEADER);
    } else {
        store16(load->template + 12, 0x86DD);
        ip[0] = 0x60;
        store16(ip + 4, (uint16_t)payload);
        ip[6] = NEXT_UDP;
        ip[7] = HOP_LIMIT;
        memcpy(ip + 24, setup->server.ip, 16);
    }
    uint8_t *udp = load->template + load->udp;
    store16(udp + 2, setup->server.port);
    store16(udp + 4, (uint16_t)payload);
    store16(udp + UDP_HEADER, BINDING_REQUEST);
    store16(udp + UDP_HEADER + 2, (uint16_t)attributes);
    store32(udp + UDP_HEADER + 4, MAGIC_COOKIE);
    uint8_t pseudo_header[4] = {0, NEXT_UDP, 0, (uint8_t)payload};
    load->udp_sum = add(add(add(0, pseudo_header, sizeof pseudo_header), udp, payload),
                        setup->server.ip, load->address_length);
}

size_t pktstun_load_request(const struct pktstun_load *load, uint32_t place, uint8_t *frame)
{
    uint64_t number = number_at(load, place);
    uint8_t *udp = frame + load->udp;
    uint8_t *source = udp - 2 * load->address_length;
    uint8_t *id = udp + UDP_HEADER + STUN_ID;
    uint8_t ip[16];

    memcpy(frame, load->template, sizeof load->template);
    store16(udp, source_of(load, number, ip));
    pktstun_load_id(load->setup.keys, number, id);
    memcpy(source, ip, load->address_length);
    uint64_t source_sum = add(0, source, load->address_length);
    if (load->address_length == 4)
        store_checksum(frame + ETHERNET_HEADER + 10, load->ip_sum + source_sum);
    uint64_t sum = add(add(load->udp_sum + source_sum, udp, 2), id, 12);
    if (load->setup.odd_every) {
        uint8_t *type = udp + UDP_HEADER + STUN_HEADER;
        store16(type, place % load->setup.odd_every == 0 ? UNKNOWN_REQUIRED : UNKNOWN_OPTIONAL);
        sum = add(sum, type, 2);
    }
    store_checksum(udp + 6, sum);
    /* 0 would say that there is no checksum (RFC 768); it means the same as 0xFFFF. */
    if (load16(udp + 6) == 0)
        store16(udp + 6, 0xFFFF);
    return load->length;
}

/* Nanoseconds from the start until a request is due. */
static uint64_t due_after(const struct pktstun_load *load, uint64_t place)
{
    return place * NS_PER_S / load->rate;
}

/* How many requests are due at a time. place * NS_PER_S / rate <= elapsed, solved for the
 * whole number place; the product is less than total * NS_PER_S + rate, 63 bits. */
static uint64_t due_at(const struct pktstun_load *load, uint64_t time)
{
    if (time < load->start)
        return 0;
    uint64_t elapsed = time - load->start;
    if (elapsed >= load->duration)
        return load->total;
    uint64_t count = ((elapsed + 1) * load->rate + NS_PER_S - 1) / NS_PER_S;
    return count < load->total ? count : load->total;
}

/* Sends what is due, a batch at most. How many requests are done with, or -errno. */
static int send_due(struct pktstun_load *load, uint64_t now)
{
    struct pktstun_load_counts *counts = &load->counts;
    uint64_t due = due_at(load, now);
    if (load->next >= due)
        return 0;
    uint32_t count =
        due - load->next < PKTSTUN_LOAD_BATCH ? (uint32_t)(due - load->next) : PKTSTUN_LOAD_BATCH;
    for (uint32_t i = 0; i < count; i++)
        pktstun_load_request(load, (uint32_t)(load->next + i), load->frames[i]);

    int sent = sendmmsg(load->setup.send_fd, load->messages, count, MSG_DONTWAIT);
    if (sent < 0) {
        switch (errno) {
        case EINTR:
        case EAGAIN: /* the socket's buffer is full: the request is still due */
            return 0;
        case ENOBUFS: /* the interface's queue is full */
        case ENOMEM:
        case ENETDOWN:
            counts->send_errors++;
            load->next++;
            return 1;
        default:
            return -errno;
        }
    }
    uint64_t lateness = now - load->start - due_after(load, load->next);
    uint64_t late = now - load->start < PKTSTUN_LOAD_LATE
                        ? 0 : due_at(load, now - PKTSTUN_LOAD_LATE);
    uint64_t next = load->next + (uint64_t)sent;
    if (late > load->next)
        counts->late += (late < next ? late : next) - load->next;
    if (lateness > counts->lateness)
        counts->lateness = lateness;
    counts->sent += (uint64_t)sent;
    counts->send_calls++;
    load->next = next;
    return sent;
}

/* --- Replies --- */

uint32_t pktstun_histogram_bucket(uint64_t latency)
{
    if (latency < PKTSTUN_HISTOGRAM_STEPS)
        return (uint32_t)latency;
    /* The power of two, and the bits behind its leading one. */
    unsigned int shift = 63 - 6 - (unsigned int)__builtin_clzll(latency);
    uint64_t bucket = shift * PKTSTUN_HISTOGRAM_STEPS + (latency >> shift);
    return bucket < PKTSTUN_HISTOGRAM_BUCKETS ? (uint32_t)bucket : PKTSTUN_HISTOGRAM_BUCKETS - 1;
}

/*  RFC 8489 section 14.2, behind the attribute's type and length
 *   0 0 0 0 0 0 0 0|    Family     |         X-Port                |
 *  |                X-Address (4 or 16 bytes)                      |  */
static int is_mapped_to(const uint8_t *message, const uint8_t *value, size_t length,
                        const struct pktstun_address *client)
{
    size_t address_length = client->family == 4 ? 4 : 16;
    if (length != 4 + address_length || value[1] != (client->family == 4 ? 1 : 2))
        return 0;
    if ((load16(value + 2) ^ MAGIC_COOKIE >> 16) != client->port)
        return 0;
    /* The cookie and the transaction id follow each other in the header. */
    for (size_t i = 0; i < address_length; i++)
        if ((value[4 + i] ^ message[4 + i]) != client->ip[i])
            return 0;
    return 1;
}

/* What is wrong with a message to this client, or PKTSTUN_WRONGS. The number and whether it
 * is a success response are given back once they are known. */
static enum pktstun_load_wrong judge(
    const struct pktstun_load *load, const struct pktstun_datagram *datagram,
    uint64_t *number, int *success)
{
    const uint8_t *message = datagram->payload;
    if (datagram->source.family != load->setup.server.family
        || datagram->source.port != load->setup.server.port
        || memcmp(datagram->source.ip, load->setup.server.ip, 16) != 0)
        return PKTSTUN_WRONG_SOURCE;
    if (datagram->length < STUN_HEADER || datagram->length % 4 != 0
        || load16(message + 2) != datagram->length - STUN_HEADER
        || load32(message + 4) != MAGIC_COOKIE)
        return PKTSTUN_WRONG_MESSAGE;

    const uint8_t *mapped = NULL; /* the first one counts (RFC 8489 section 14) */
    size_t mapped_length = 0;
    for (size_t at = STUN_HEADER; at < datagram->length;) {
        size_t length = load16(message + at + 2);
        if (length > datagram->length - at - 4)
            return PKTSTUN_WRONG_MESSAGE;
        if (!mapped && load16(message + at) == XOR_MAPPED_ADDRESS) {
            mapped = message + at + 4;
            mapped_length = length;
        }
        at += 4 + ((length + 3) & ~(size_t)3);
    }
    *success = load16(message) == BINDING_SUCCESS;
    if (!*success && load16(message) != BINDING_ERROR)
        return PKTSTUN_WRONG_TYPE;
    if (!pktstun_load_number(load->setup.keys, message + STUN_ID, number)
        || *number >= number_at(load, 0) + load->next)
        return PKTSTUN_WRONG_ID;
    struct pktstun_address client = {.family = load->setup.source.family};
    client.port = source_of(load, *number, client.ip);
    if (datagram->destination.port != client.port
        || memcmp(datagram->destination.ip, client.ip, 16) != 0)
        return PKTSTUN_WRONG_DESTINATION;
    if (*success && !(mapped && is_mapped_to(message, mapped, mapped_length, &client)))
        return PKTSTUN_WRONG_MAPPED;
    return PKTSTUN_WRONGS;
}

void pktstun_load_reply(struct pktstun_load *load, const struct pktstun_frame *frame)
{
    struct pktstun_load_counts *counts = &load->counts;
    struct pktstun_datagram datagram;
    uint64_t number = 0;
    int success = 0;

    if (pktstun_parse_frame(frame, &datagram) != PKTSTUN_PASS) {
        counts->wrong[PKTSTUN_WRONG_FRAME]++;
        return;
    }
    enum pktstun_load_wrong wrong = judge(load, &datagram, &number, &success);
    if (wrong != PKTSTUN_WRONGS) {
        counts->wrong[wrong]++;
        return;
    }
    if (number >> 32 != load->run) {
        counts->stale++;
        return;
    }
    uint64_t place = number & 0xFFFFFFFF;
    uint8_t bit = (uint8_t)(1u << (place & 7));
    if (load->seen[place >> 3] & bit) {
        counts->duplicates++;
        return;
    }
    load->seen[place >> 3] |= bit;
    if (!success) {
        counts->errors++;
        return;
    }
    uint64_t arrived = frame->timestamp - load->realtime;
    uint64_t due = load->start + due_after(load, place);
    uint64_t latency = arrived > due ? arrived - due : 0;
    counts->replies++;
    counts->in_time += load->sending || arrived < load->start + counts->elapsed;
    counts->latency_sum += latency;
    if (latency > counts->latency_max)
        counts->latency_max = latency;
    counts->histogram[pktstun_histogram_bucket(latency)]++;
}

/* Reads one block, if one is ready: how many. */
static int read_block(struct pktstun_load *load)
{
    size_t size = load->setup.block_size;
    uint8_t *block = load->setup.ring + load->block * size;
    struct pktstun_walk walk;
    struct pktstun_frame frame;
    int more;

    if (!pktstun_block_ready(block))
        return 0;
    more = pktstun_walk_begin(block, size, &walk);
    while (more >= 0 && (more = pktstun_walk_next(block, size, &walk, &frame)) == 1)
        pktstun_load_reply(load, &frame);
    if (more < 0)
        load->counts.wrong[PKTSTUN_WRONG_FRAME]++;
    pktstun_block_release(block);
    load->block = (load->block + 1) % load->setup.block_count;
    return 1;
}

/* --- Runs --- */

struct pktstun_load *pktstun_load_new(const struct pktstun_load_setup *setup)
{
    struct pktstun_load *load = calloc(1, sizeof *load);
    if (!load)
        return NULL;
    load->setup = *setup;
    int ipv4 = setup->server.family == 4;
    load->address_length = ipv4 ? 4 : 16;
    load->udp = ETHERNET_HEADER + (size_t)(ipv4 ? IPV4_HEADER : IPV6_HEADER);
    load->length = load->udp + UDP_HEADER + STUN_HEADER + (setup->odd_every ? 4 : 0);
    load->host_bits = setup->host_bits < 64 ? setup->host_bits : 64;
    make_template(load);
    for (uint32_t i = 0; i < PKTSTUN_LOAD_BATCH; i++) {
        load->vectors[i] = (struct iovec){.iov_base = load->frames[i], .iov_len = load->length};
        load->messages[i].msg_hdr =
            (struct msghdr){.msg_iov = &load->vectors[i], .msg_iovlen = 1};
    }
    return load;
}

void pktstun_load_free(struct pktstun_load *load)
{
    if (load)
        free(load->seen);
    free(load);
}

int pktstun_load_begin(struct pktstun_load *load, uint64_t rate, uint64_t duration,
                       uint64_t grace)
{
    uint64_t total = rate && duration > UINT64_MAX / rate ? UINT64_MAX : rate * duration / NS_PER_S;
    if (total == 0 || total > UINT32_MAX) {
        errno = EINVAL;
        return -1;
    }
    /* What is late from the run before would be taken for this one's. */
    for (uint32_t i = 0; load->run && i < load->setup.block_count && read_block(load); i++)
        ;
    uint8_t *seen = calloc((size_t)(total / 8 + 1), 1);
    if (!seen)
        return -1;
    free(load->seen);
    load->seen = seen;
    memset(&load->counts, 0, sizeof load->counts);
    load->run++;
    load->rate = rate;
    load->duration = duration;
    load->grace = grace;
    load->total = total;
    load->next = 0;
    load->sending = 1;
    load->realtime = realtime_offset();
    load->start = monotonic();
    return 0;
}

static void end_sending(struct pktstun_load *load, uint64_t now)
{
    uint64_t end = load->start + load->duration;
    load->sending = 0;
    load->counts.unsent = load->total - load->next;
    load->counts.elapsed = (now > end ? now : end) - load->start;
    load->finish = load->start + load->counts.elapsed + load->grace;
}

void pktstun_load_stop(struct pktstun_load *load)
{
    if (!load->sending)
        return;
    uint64_t now = monotonic();
    load->total = due_at(load, now);
    if (now - load->start < load->duration)
        load->duration = now - load->start;
    end_sending(load, now);
}

static void wait_until(uint64_t now, uint64_t until)
{
    if (until < now + SLEEP)
        return;
    uint64_t wake = until - SPIN;
    if (wake > now + LONGEST_SLEEP)
        wake = now + LONGEST_SLEEP;
    struct timespec time = {.tv_sec = (time_t)(wake / NS_PER_S), .tv_nsec = (long)(wake % NS_PER_S)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

int pktstun_load_run(struct pktstun_load *load, uint64_t slice)
{
    uint64_t now = monotonic();
    uint64_t back = now + slice;
    load->realtime = realtime_offset();
    for (;; now = monotonic()) {
        int busy = 0;
        if (load->sending) {
            busy = send_due(load, now);
            if (busy < 0)
                return busy;
            if (load->next == load->total
                || now >= load->start + load->duration + PKTSTUN_LOAD_OVERRUN)
                end_sending(load, now);
        }
        busy |= read_block(load);
        if (!load->sending && now >= load->finish)
            return 0;
        if (now >= back)
            return 1;
        if (!busy) {
            uint64_t event =
                load->sending ? load->start + due_after(load, load->next) : load->finish;
            wait_until(now, event < back ? event : back);
        }
    }
}

const struct pktstun_load_counts *pktstun_load_counts(const struct pktstun_load *load)
{
    return &load->counts;
}

const uint8_t *pktstun_load_answered(const struct pktstun_load *load)
{
    return load->seen;
}

/* --- Idle time --- */

uint64_t pktstun_idle_meter(uint64_t duration, uint64_t threshold, uint64_t *idle)
{
    uint64_t start = monotonic();
    uint64_t last = start;
    *idle = 0;
    while (last - start < duration) {
        uint64_t now = monotonic();
        if (now - last < threshold)
            *idle += now - last;
        last = now;
    }
    return last - start;
}
