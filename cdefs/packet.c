/* Which frames hold a datagram to answer: Ethernet, IPv4, IPv6, UDP.
 *
 * A packet socket sees frames before the kernel has looked at them (an ETH_P_ALL tap runs
 * ahead of ip_rcv), so every check that the kernel makes for a UDP socket is made here:
 * packet type, VLAN, header sanity, header checksum, fragments, UDP length and checksum.
 * The reference is receive() in pktstun/packet.py; the checks stand in the same order,
 * and a property test compares the two.
 *
 * Pure functions on (buffer, length): no state, no allocation, every load after its bounds
 * check, lengths in size_t. */
#include "packet.h"

#include <linux/if_packet.h>

#include "checksum.h"

enum {
    ETHERNET_HEADER = 14,
    ETHERTYPE_IPV4 = 0x0800,
    ETHERTYPE_IPV6 = 0x86DD,
    ETHERTYPE_8021Q = 0x8100,
    ETHERTYPE_8021AD = 0x88A8,
    IPV4_HEADER = 20,
    IPV4_MORE_FRAGMENTS = 0x2000,
    IPV4_FRAGMENT_OFFSET = 0x1FFF,
    IPV6_HEADER = 40,
    UDP_HEADER = 8,
    NEXT_UDP = 17,
    VLAN_VID = 0x0FFF,
};

static int is_mapped(const uint8_t *ip)
{
    static const uint8_t prefix[12] = {[10] = 0xFF, [11] = 0xFF};
    return memcmp(ip, prefix, sizeof prefix) == 0;
}

/*  RFC 768
 *   0      7 8     15 16    23 24    31
 *  +--------+--------+--------+--------+
 *  |   source port   | destination port|
 *  +--------+--------+--------+--------+
 *  |     length      |    checksum     |
 *  +--------+--------+--------+--------+  */
static enum pktstun_verdict parse_udp(
    const uint8_t *segment, size_t length, uint64_t pseudo_header, uint32_t status,
    struct pktstun_datagram *datagram)
{
    if (length < UDP_HEADER || load16(segment + 4) != length)
        return PKTSTUN_DROP_BAD_UDP_LENGTH;
    /* A local sender's offload fills the field in later (veth, loopback). */
    if (!(status & TP_STATUS_CSUMNOTREADY)) {
        if (load16(segment + 6) == 0) {
            if (datagram->source.family == 6)
                return PKTSTUN_DROP_NO_UDP_CHECKSUM;
        } else if (!(status & TP_STATUS_CSUM_VALID)) {
            uint64_t sum = pseudo_header + NEXT_UDP + length;
            if (fold(sum_words(sum, segment, length)) != 0xFFFF)
                return PKTSTUN_DROP_BAD_UDP_CHECKSUM;
        }
    }
    if (length - UDP_HEADER > PKTSTUN_MAX_DATAGRAM)
        return PKTSTUN_DROP_TOO_LONG;
    datagram->source.port = load16(segment);
    datagram->destination.port = load16(segment + 2);
    datagram->payload = segment + UDP_HEADER;
    datagram->length = length - UDP_HEADER;
    return PKTSTUN_PASS;
}

/*  RFC 791 section 3.1
 *  +-------+-------+---------------+-------------------------------+
 *  |Version|  IHL  |Type of Service|          Total Length         |
 *  +-------+-------+---------------+-----+-------------------------+
 *  |         Identification        |Flags|      Fragment Offset    |
 *  +---------------+---------------+-----+-------------------------+
 *  |  Time to Live |    Protocol   |         Header Checksum       |
 *  +---------------+---------------+-------------------------------+
 *  |                       Source Address                          |
 *  +---------------------------------------------------------------+
 *  |                    Destination Address                        |
 *  +---------------------------------------------------------------+  */
static enum pktstun_verdict parse_ipv4(
    const uint8_t *packet, size_t available, uint32_t status, struct pktstun_datagram *datagram)
{
    if (available < IPV4_HEADER || packet[0] >> 4 != 4)
        return PKTSTUN_DROP_BAD_IP;
    size_t header = (size_t)(packet[0] & 0x0F) * 4;
    size_t total = load16(packet + 2);
    if (header < IPV4_HEADER || header > available || total < header || total > available)
        return PKTSTUN_DROP_BAD_IP;
    if (fold(sum_words(0, packet, header)) != 0xFFFF)
        return PKTSTUN_DROP_BAD_IP_CHECKSUM;
    if (load16(packet + 6) & (IPV4_MORE_FRAGMENTS | IPV4_FRAGMENT_OFFSET))
        return PKTSTUN_DROP_FRAGMENT;
    if (packet[9] != NEXT_UDP)
        return PKTSTUN_DROP_NOT_UDP;
    if (header > IPV4_HEADER)
        return PKTSTUN_DROP_IP_OPTIONS;
    memcpy(datagram->source.ip, packet + 12, 4);
    memcpy(datagram->destination.ip, packet + 16, 4);
    return parse_udp(packet + header, total - header, sum_words(0, packet + 12, 8), status,
                     datagram);
}

/*  RFC 8200 section 3
 *  +-------+---------------+---------------------------------------+
 *  |Version| Traffic Class |           Flow Label                  |
 *  +-------+---------------+-------+---------------+---------------+
 *  |         Payload Length        |  Next Header  |   Hop Limit   |
 *  +-------------------------------+---------------+---------------+
 *  |                   Source Address (16 bytes)                   |
 *  +---------------------------------------------------------------+
 *  |                 Destination Address (16 bytes)                |
 *  +---------------------------------------------------------------+  */
static enum pktstun_verdict parse_ipv6(
    const uint8_t *packet, size_t available, uint32_t status, struct pktstun_datagram *datagram)
{
    if (available < IPV6_HEADER || packet[0] >> 4 != 6)
        return PKTSTUN_DROP_BAD_IP;
    size_t length = load16(packet + 4);
    if (IPV6_HEADER + length > available)
        return PKTSTUN_DROP_BAD_IP;
    if (is_mapped(packet + 8) || is_mapped(packet + 24))
        return PKTSTUN_DROP_BAD_IP;
    switch (packet[6]) {
    case NEXT_UDP:
        break;
    case 44:
        return PKTSTUN_DROP_FRAGMENT;
    case 0:   /* hop-by-hop options */
    case 43:  /* routing */
    case 51:  /* authentication header */
    case 60:  /* destination options */
    case 135: /* mobility */
    case 139: /* host identity protocol */
    case 140: /* shim6 */
        return PKTSTUN_DROP_IPV6_EXTENSION;
    default:
        return PKTSTUN_DROP_NOT_UDP;
    }
    memcpy(datagram->source.ip, packet + 8, 16);
    memcpy(datagram->destination.ip, packet + 24, 16);
    return parse_udp(packet + IPV6_HEADER, length, sum_words(0, packet + 8, 32), status,
                     datagram);
}

enum pktstun_verdict pktstun_parse_frame(
    const struct pktstun_frame *frame, struct pktstun_datagram *datagram)
{
    memset(datagram, 0, sizeof *datagram);
    if (frame->packet_type != PACKET_HOST)
        return PKTSTUN_DROP_NOT_HOST;
    if (frame->captured < frame->length)
        return PKTSTUN_DROP_TRUNCATED;
    /* VLAN 0 is a priority tag: the frame belongs to no VLAN (IEEE 802.1Q). */
    if (frame->status & TP_STATUS_VLAN_VALID && frame->vlan_tci & VLAN_VID)
        return PKTSTUN_DROP_VLAN;
    if (frame->captured < ETHERNET_HEADER)
        return PKTSTUN_DROP_BAD_IP;

    const uint8_t *packet = frame->data + ETHERNET_HEADER;
    size_t available = frame->captured - ETHERNET_HEADER;
    switch (load16(frame->data + 12)) {
    case ETHERTYPE_IPV4:
        datagram->source.family = datagram->destination.family = 4;
        return parse_ipv4(packet, available, frame->status, datagram);
    case ETHERTYPE_IPV6:
        datagram->source.family = datagram->destination.family = 6;
        return parse_ipv6(packet, available, frame->status, datagram);
    case ETHERTYPE_8021Q:
    case ETHERTYPE_8021AD:
        return PKTSTUN_DROP_VLAN;
    default:
        return PKTSTUN_DROP_NOT_IP;
    }
}
