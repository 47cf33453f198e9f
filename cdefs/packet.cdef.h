/* A transport address (RFC 8489 section 4): an IP address and a port. */
struct pktstun_address {
    uint8_t family;   /* 4 or 6 */
    uint8_t ip[16];   /* network byte order; IPv4 fills the first 4 bytes, the rest is 0 */
    uint16_t port;    /* host byte order */
    uint32_t scope;   /* interface index of an IPv6 link-local address, else 0 */
};

/* A frame as a TPACKET_V3 ring hands it out (struct tpacket3_hdr, struct sockaddr_ll). */
struct pktstun_frame {
    const uint8_t *data;
    uint32_t captured;     /* bytes at data (tp_snaplen) */
    uint32_t length;       /* bytes on the wire (tp_len) */
    uint32_t status;       /* TP_STATUS_* of the frame */
    uint16_t vlan_tci;     /* tag that the kernel took off, if TP_STATUS_VLAN_VALID */
    uint16_t vlan_tpid;    /* its EtherType, if TP_STATUS_VLAN_TPID_VALID */
    uint8_t packet_type;   /* PACKET_HOST and its siblings */
    int32_t ifindex;
    uint64_t timestamp;    /* nanoseconds, CLOCK_REALTIME */
};

/* The UDP datagram in a frame. payload points into the frame. */
struct pktstun_datagram {
    struct pktstun_address source;
    struct pktstun_address destination;
    const uint8_t *payload;
    size_t length;
};

/* Longest UDP payload that is looked at. No STUN request of a client is near it. */
#define PKTSTUN_MAX_DATAGRAM 2048

/* The checks of pktstun.packet.receive(), in its order: PKTSTUN_PASS and the datagram, or
 * the drop. Reads nothing outside frame->data[0 .. captured). */
enum pktstun_verdict pktstun_parse_frame(
    const struct pktstun_frame *frame, struct pktstun_datagram *datagram);
