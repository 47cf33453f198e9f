/* What the server says to a datagram: the part of respond() that runs once per packet.
 *
 * The specification is respond() in pktstun/stun/_respond.py. This file answers what
 * real clients send nearly always, a Binding request whose attributes are all optional,
 * known and ignored, or FINGERPRINT, and drops what respond() drops, under the same name.
 * A request that deserves an error response or wants something of RFC 5780 is handed over to
 * Python, and so is one of RFC 3489; where credentials are asked for, every request is. What such a
 * server adds to the replies to others does not depend on the client, so it comes encoded.
 *
 * Pure functions on (buffer, length): no state, no allocation, every load after its bounds
 * check. Every byte of a reply is written, the padding too, so that no byte of another client's
 * can leak. */
#include "stun.h"

#include "bytes.h"

enum {
    HEADER = 20,
    ATTRIBUTE_HEADER = 4,
    TRANSACTION_ID = 12,
    FINGERPRINT_SIZE = ATTRIBUTE_HEADER + 4,

    /* RFC 8489 section 5: class bits C1 and C0 lie between the bits of the method. */
    CLASS_MASK = 0x0110,
    METHOD_MASK = 0x3EEF,
    BINDING = 0x0001,
    BINDING_SUCCESS = 0x0101,
    BINDING_ERROR = 0x0111,

    /* RFC 8489 section 18.3, RFC 8445 section 16.1, RFC 5780 section 9.1 */
    MAPPED_ADDRESS = 0x0001,
    CHANGE_REQUEST = 0x0003,
    USERNAME = 0x0006,
    MESSAGE_INTEGRITY = 0x0008,
    REALM = 0x0014,
    NONCE = 0x0015,
    MESSAGE_INTEGRITY_SHA256 = 0x001C,
    PASSWORD_ALGORITHM = 0x001D,
    USERHASH = 0x001E,
    XOR_MAPPED_ADDRESS = 0x0020,
    PRIORITY = 0x0024,
    USE_CANDIDATE = 0x0025,
    COMPREHENSION_OPTIONAL = 0x8000,
    FINGERPRINT = 0x8028,
};
#define COOKIE 0x2112A442u
#define FINGERPRINT_XOR 0x5354554Eu

/* Sixteen entries, two lookups a byte: the whole table is one cache line, and a request
 * is a few dozen bytes. Reflected polynomial 0xEDB88320. */
uint32_t pktstun_crc32(const uint8_t *data, size_t length)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4,
        0x4DB26158, 0x5005713C, 0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C,
        0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C,
    };
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < length; i++) {
        crc ^= data[i];
        crc = crc >> 4 ^ table[crc & 0x0F];
        crc = crc >> 4 ^ table[crc & 0x0F];
    }
    return ~crc;
}

/* The client's address as the reply names it: an IPv4-mapped IPv6 address is the IPv4
 * address (RFC 4291 section 2.5.5.2). */
static struct pktstun_address unmapped(const struct pktstun_address *address)
{
    static const uint8_t prefix[12] = {[10] = 0xFF, [11] = 0xFF};
    struct pktstun_address result = *address;
    if (address->family == 6 && memcmp(address->ip, prefix, sizeof prefix) == 0) {
        memset(result.ip, 0, sizeof result.ip);
        memcpy(result.ip, address->ip + 12, 4);
        result.family = 4;
    }
    return result;
}

/* Multicast or broadcast: no host's own address. */
static int is_for_many(const struct pktstun_address *address,
                       const struct pktstun_options *options)
{
    const uint8_t *ip = address->ip;
    if (address->family == 6)
        return ip[0] == 0xFF;
    if (ip[0] >> 4 == 0xE || load32(ip) == 0xFFFFFFFF)
        return 1;
    for (size_t i = 0; i < options->broadcast_count; i++)
        if (memcmp(ip, options->broadcasts[i], 4) == 0)
            return 1;
    return 0;
}

static int is_bad_source(const struct pktstun_address *source,
                         const struct pktstun_options *options)
{
    static const uint8_t zero[16], loopback6[16] = {[15] = 1};
    const uint8_t *ip = source->ip;
    if (source->port == 0 || is_for_many(source, options))
        return 1;
    if (source->family == 6)
        return memcmp(ip, zero, 16) == 0
               || (!options->allow_loopback && memcmp(ip, loopback6, 16) == 0);
    return ip[0] == 0 || (!options->allow_loopback && ip[0] == 127);
}

static int is_same_ip(const struct pktstun_address *one, const struct pktstun_address *other)
{
    return one->family == other->family && memcmp(one->ip, other->ip, sizeof one->ip) == 0;
}

static int is_same(const struct pktstun_address *one, const struct pktstun_address *other)
{
    return one->port == other->port && is_same_ip(one, other);
}

static int is_endpoint(const struct pktstun_address *address,
                       const struct pktstun_options *options)
{
    for (size_t i = 0; i < options->endpoint_count; i++)
        if (is_same(&options->endpoints[i], address))
            return 1;
    return 0;
}

/* The server's own, or from outside with an address of the host. */
static int is_own(const struct pktstun_address *source, const struct pktstun_options *options)
{
    if (options->allow_loopback)
        return is_endpoint(source, options);
    for (size_t i = 0; i < options->local_count; i++)
        if (is_same_ip(&options->local[i], source))
            return 1;
    return 0;
}

/* What a walk over the attributes found. */
struct attributes {
    int malformed;          /* one reaches beyond the message */
    int bad_fingerprint;    /* FINGERPRINT is not last, or wrong */
    int fingerprint;        /* there is one */
    int error;              /* respond() would answer with an error */
};

/*  RFC 8489 section 14
 *   0                   1                   2                   3
 *  +-------------------------------+-------------------------------+
 *  |         Type                  |            Length             |
 *  +-------------------------------+-------------------------------+
 *  |                         Value (padded to 4) ....
 *  +---------------------------------------------------------------+  */
static struct attributes walk(const uint8_t *message, size_t length)
{
    struct attributes found = {0};
    int integrity = 0, integrity_sha256 = 0, change_request = 0;
    size_t offset = HEADER;

    /* length and offset are multiples of 4: an attribute header is always whole. */
    while (offset < length) {
        const uint8_t *attribute = message + offset;
        uint16_t type = load16(attribute);
        size_t size = load16(attribute + 2);
        size_t padded = (size + 3) & ~(size_t)3;
        if (padded > length - offset - ATTRIBUTE_HEADER) {
            found.malformed = 1;
            return found;
        }
        offset += ATTRIBUTE_HEADER + padded;

        if (type == FINGERPRINT) {
            /* Section 14.7: the CRC covers the message up to the attribute. */
            size_t covered = (size_t)(attribute - message);
            found.fingerprint = 1;
            if (offset != length || size != 4
                || load32(attribute + 4) != (pktstun_crc32(message, covered) ^ FINGERPRINT_XOR))
                found.bad_fingerprint = 1;
            continue;
        }
        /* Section 14.5 and 14.6: what follows the integrity attributes is ignored. */
        if (integrity_sha256 || (integrity && type != MESSAGE_INTEGRITY_SHA256))
            continue;
        switch (type) {
        case MESSAGE_INTEGRITY:
            integrity = 1;
            break;
        case MESSAGE_INTEGRITY_SHA256:
            integrity_sha256 = 1;
            break;
        case USERNAME:
        case REALM:
        case NONCE:
        case PASSWORD_ALGORITHM:
        case USERHASH:
        case PRIORITY:
        case USE_CANDIDATE:
            break;
        case CHANGE_REQUEST:
            /* Without a flag it asks for nothing, and old clients always send it.
             * Of duplicates the first counts. */
            if (!change_request && (size != 4 || load32(attribute + 4) & 0x6))
                found.error = 1;
            change_request = 1;
            break;
        default:
            if (type < COMPREHENSION_OPTIONAL)
                found.error = 1;
        }
    }
    return found;
}

size_t pktstun_reply_bound(const struct pktstun_options *options)
{
    const size_t address = ATTRIBUTE_HEADER + 20;
    size_t bound = address;
    if (options->discovery_count)
        bound = 2 * address + sizeof options->discovery->attributes;
    else if (options->redirects[0].length || options->redirects[1].length)
        bound = sizeof options->redirects->attributes;
    return HEADER + bound + options->software_length + FINGERPRINT_SIZE;
}

static const struct pktstun_discovery *find_discovery(const struct pktstun_address *server,
                                                      const struct pktstun_options *options)
{
    for (size_t i = 0; i < options->discovery_count; i++)
        if (is_same(&options->discovery[i].endpoint, server))
            return &options->discovery[i];
    return NULL;
}

/* An address attribute, XORed with the mask or, without one, in clear; returns its length. The
 * mask is the cookie and the transaction id, which lie side by side. */
static size_t put_address(uint8_t *attribute, uint16_t type, const struct pktstun_address *address,
                          const uint8_t *mask)
{
    size_t ip_size = address->family == 4 ? 4 : 16;
    store16(attribute, type);
    store16(attribute + 2, (uint16_t)(4 + ip_size));
    attribute[4] = 0;
    attribute[5] = address->family == 4 ? 1 : 2;
    store16(attribute + 6, (uint16_t)(address->port ^ (mask ? load16(mask) : 0)));
    for (size_t i = 0; i < ip_size; i++)
        attribute[8 + i] = address->ip[i] ^ (mask ? mask[i] : 0);
    return ATTRIBUTE_HEADER + 4 + ip_size;
}

static size_t put(uint8_t *at, const uint8_t *bytes, size_t length)
{
    memcpy(at, bytes, length);
    return length;
}

/* The header, for a reply whose attributes end at end so far; SOFTWARE if configured; FINGERPRINT
 * last if the request had one. Returns the whole length. */
static size_t finish(uint8_t *reply, size_t end, uint16_t type, const uint8_t *request,
                     int fingerprint, const struct pktstun_options *options)
{
    end += put(reply + end, options->software, options->software_length);
    size_t total = end + (fingerprint ? FINGERPRINT_SIZE : 0);
    store16(reply, type);
    store16(reply + 2, (uint16_t)(total - HEADER));
    memcpy(reply + 4, request + 4, 4 + TRANSACTION_ID);
    if (fingerprint) {
        store16(reply + end, FINGERPRINT);
        store16(reply + end + 2, 4);
        store32(reply + end + 4, pktstun_crc32(reply, end) ^ FINGERPRINT_XOR);
    }
    return total;
}

/* Binding success: XOR-MAPPED-ADDRESS first and alone (RFC 8489 section 14.2), but where NAT
 * behaviour discovery is served (RFC 5780 section 6.1). */
static size_t build_success(uint8_t *reply, const uint8_t *request,
                            const struct pktstun_address *client,
                            const struct pktstun_address *server, int fingerprint,
                            const struct pktstun_options *options)
{
    const struct pktstun_discovery *discovery = find_discovery(server, options);
    size_t end = HEADER + put_address(reply + HEADER, XOR_MAPPED_ADDRESS, client, request + 4);
    if (discovery) {
        end += put_address(reply + end, MAPPED_ADDRESS, client, NULL);
        end += put(reply + end, discovery->attributes, discovery->length);
    }
    return finish(reply, end, BINDING_SUCCESS, request, fingerprint, options);
}

/*  RFC 8489 section 5
 *  +-+-+---------------------------+-------------------------------+
 *  |0 0|     STUN Message Type     |         Message Length        |
 *  +-+-+---------------------------+-------------------------------+
 *  |                         Magic Cookie                          |
 *  +---------------------------------------------------------------+
 *  |                     Transaction ID (96 bits)                  |
 *  +---------------------------------------------------------------+  */
enum pktstun_verdict pktstun_answer(
    const uint8_t *datagram, size_t length,
    const struct pktstun_address *source, const struct pktstun_address *destination,
    const struct pktstun_options *options, uint8_t *reply, size_t *reply_length)
{
    struct pktstun_address client = unmapped(source);
    if (is_bad_source(&client, options))
        return PKTSTUN_DROP_BAD_SOURCE;
    if (is_own(&client, options))
        return PKTSTUN_DROP_OWN_SOURCE;
    struct pktstun_address server = unmapped(destination);
    if ((options->check_destination && !is_endpoint(&server, options))
        || is_for_many(&server, options))
        return PKTSTUN_DROP_NOT_FOR_US;

    if (length < HEADER)
        return PKTSTUN_DROP_SHORT;
    uint16_t type = load16(datagram);
    if (type & 0xC000)
        return PKTSTUN_DROP_NOT_STUN;
    size_t body = load16(datagram + 2);
    if (body & 3 || HEADER + body != length)
        return PKTSTUN_DROP_BAD_LENGTH;
    int classic = load32(datagram + 4) != COOKIE;
    if (classic && !(options->classic && client.family == 4))
        return PKTSTUN_DROP_NO_COOKIE;
    if (type & CLASS_MASK)
        return PKTSTUN_DROP_NOT_REQUEST;
    if ((type & METHOD_MASK) != BINDING)
        return PKTSTUN_DROP_UNKNOWN_METHOD;

    struct attributes found = walk(datagram, length);
    if (found.malformed)
        return PKTSTUN_DROP_MALFORMED;
    if (classic)
        return PKTSTUN_HANDOVER;
    if (found.bad_fingerprint)
        return PKTSTUN_DROP_BAD_FINGERPRINT;
    if (found.error || options->check_credentials)
        return PKTSTUN_HANDOVER;
    const struct pktstun_redirect *redirect = &options->redirects[client.family == 6];
    if (redirect->length) {
        size_t end = HEADER + put(reply + HEADER, redirect->attributes, redirect->length);
        *reply_length = finish(reply, end, BINDING_ERROR, datagram, found.fingerprint, options);
        return PKTSTUN_ERROR;
    }
    *reply_length =
        build_success(reply, datagram, &client, &server, found.fingerprint, options);
    return PKTSTUN_SUCCESS;
}
