#define PKTSTUN_MAX_ENDPOINTS 256
#define PKTSTUN_MAX_BROADCASTS 256
#define PKTSTUN_MAX_SOFTWARE 516   /* the encoded attribute: 4 + 509 bytes, padded */

/* What respond() is told beside the datagram; made from pktstun.stun.ResponderOptions. */
struct pktstun_options {
    uint8_t allow_loopback;      /* answer the host's own: loopback, the endpoints' addresses */
    uint8_t check_destination;   /* the destination must be one of the endpoints */
    uint16_t software_length;    /* 0: no SOFTWARE attribute */
    uint16_t endpoint_count;
    uint16_t broadcast_count;
    uint8_t software[PKTSTUN_MAX_SOFTWARE];  /* encoded, padding included */
    uint8_t broadcasts[PKTSTUN_MAX_BROADCASTS][4];
    struct pktstun_address endpoints[PKTSTUN_MAX_ENDPOINTS];  /* the server's own */
};

/* Longest success reply: header, XOR-MAPPED-ADDRESS (IPv6), SOFTWARE, FINGERPRINT. */
#define PKTSTUN_MAX_REPLY 568

/* What pktstun.stun.respond() says to a datagram: a drop; PKTSTUN_SUCCESS with the same
 * bytes in reply[0 .. *reply_length), which has room for PKTSTUN_MAX_REPLY; or
 * PKTSTUN_HANDOVER where the answer takes Python. Reads nothing outside
 * datagram[0 .. length). */
enum pktstun_verdict pktstun_answer(
    const uint8_t *datagram, size_t length,
    const struct pktstun_address *source, const struct pktstun_address *destination,
    const struct pktstun_options *options, uint8_t *reply, size_t *reply_length);

/* Bytes that the longest success reply takes under these options. */
size_t pktstun_reply_bound(const struct pktstun_options *options);

/* CRC-32 of ITU V.42, as RFC 8489 section 14.7 wants it before the XOR. */
uint32_t pktstun_crc32(const uint8_t *data, size_t length);
