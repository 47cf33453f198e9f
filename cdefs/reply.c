/* The frame that answers a frame: back to where it came from, all checksums in full.
 *
 * The addresses are those of the request, exchanged, on all three layers: so a request that
 * came through a gateway goes back to that gateway. Everything else is what the kernel would
 * write for a UDP socket: hop limit 64 (RFC 1700), and over IPv4 "don't fragment" with an
 * identification of 0 (RFC 6864).
 *
 * The UDP checksum is computed over everything and never derived from the request's, which on
 * a virtual link need not be filled in. */
#include "reply.h"

#include "checksum.h"

enum {
    MAC = 6,
    ETHERNET_HEADER = 14,
    IPV4_HEADER = 20,
    IPV6_HEADER = 40,
    UDP_HEADER = 8,
    NEXT_UDP = 17,
    HOP_LIMIT = 64,
    DONT_FRAGMENT = 0x4000,
};
_Static_assert(ETHERNET_HEADER + IPV4_HEADER + UDP_HEADER == PKTSTUN_IPV4_HEADERS, "IPv4");
_Static_assert(ETHERNET_HEADER + IPV6_HEADER + UDP_HEADER == PKTSTUN_IPV6_HEADERS, "IPv6");

/* addresses: those of the IP header, source first, which the checksum covers (RFC 768). */
static void write_udp(uint8_t *segment, size_t length, const struct pktstun_datagram *datagram,
                      const uint8_t *addresses, size_t addresses_length)
{
    store16(segment, datagram->destination.port);
    store16(segment + 2, datagram->source.port);
    store16(segment + 4, (uint16_t)length);
    store16(segment + 6, 0);
    uint64_t sum = sum_words(NEXT_UDP + length, addresses, addresses_length);
    uint16_t checksum = (uint16_t)~fold(sum_words(sum, segment, length));
    /* 0 would say that there is none. */
    store16(segment + 6, checksum ? checksum : 0xFFFF);
}

static void write_ipv4(uint8_t *packet, size_t length, const struct pktstun_datagram *datagram)
{
    memset(packet, 0, IPV4_HEADER);
    packet[0] = 0x45;
    store16(packet + 2, (uint16_t)length);
    store16(packet + 6, DONT_FRAGMENT);
    packet[8] = HOP_LIMIT;
    packet[9] = NEXT_UDP;
    memcpy(packet + 12, datagram->destination.ip, 4);
    memcpy(packet + 16, datagram->source.ip, 4);
    store16(packet + 10, (uint16_t)~fold(sum_words(0, packet, IPV4_HEADER)));
    write_udp(packet + IPV4_HEADER, length - IPV4_HEADER, datagram, packet + 12, 8);
}

static void write_ipv6(uint8_t *packet, size_t length, const struct pktstun_datagram *datagram)
{
    memset(packet, 0, IPV6_HEADER);
    packet[0] = 0x60;
    store16(packet + 4, (uint16_t)(length - IPV6_HEADER));
    packet[6] = NEXT_UDP;
    packet[7] = HOP_LIMIT;
    memcpy(packet + 8, datagram->destination.ip, 16);
    memcpy(packet + 24, datagram->source.ip, 16);
    write_udp(packet + IPV6_HEADER, length - IPV6_HEADER, datagram, packet + 8, 32);
}

size_t pktstun_write_reply_headers(const uint8_t *request, const struct pktstun_datagram *datagram,
                                   uint8_t *payload, size_t length)
{
    int ipv4 = datagram->source.family == 4;
    size_t headers = ipv4 ? PKTSTUN_IPV4_HEADERS : PKTSTUN_IPV6_HEADERS;
    uint8_t *frame = payload - headers;

    memcpy(frame, request + MAC, MAC);
    memcpy(frame + MAC, request, MAC);
    memcpy(frame + 2 * MAC, request + 2 * MAC, 2);
    if (ipv4)
        write_ipv4(frame + ETHERNET_HEADER, headers - ETHERNET_HEADER + length, datagram);
    else
        write_ipv6(frame + ETHERNET_HEADER, headers - ETHERNET_HEADER + length, datagram);
    return headers;
}
