#define PKTSTUN_MAX_ENDPOINTS 256
#define PKTSTUN_MAX_BROADCASTS 256
#define PKTSTUN_MAX_LOCAL 512
#define PKTSTUN_MAX_SOFTWARE 516   /* the encoded attribute: 4 + 509 bytes, padded */

#define PKTSTUN_MAX_DISCOVERY 8    /* two addresses and two ports, in each family */

/* What success replies from an endpoint say of the server (RFC 5780): RESPONSE-ORIGIN and
 * OTHER-ADDRESS, encoded. */
struct pktstun_discovery {
    struct pktstun_address endpoint;
    uint16_t length;
    uint8_t attributes[48];
};

/* The attributes of an error response that sends clients elsewhere, encoded: ERROR-CODE 300 and
 * ALTERNATE-SERVER. length is 0 where there is no such. */
struct pktstun_redirect {
    uint16_t length;
    uint8_t attributes[32];
};

/* What respond() is told beside the datagram; made from pktstun.stun.ResponderOptions. */
struct pktstun_options {
    uint8_t allow_loopback;      /* answer the host's own: loopback and local addresses */
    uint8_t check_destination;   /* the destination must be one of the endpoints */
    uint8_t classic;             /* requests of RFC 3489 are for respond(), over IPv4 */
    uint8_t check_credentials;   /* whom the request is from decides what it gets */
    uint16_t software_length;    /* 0: no SOFTWARE attribute */
    uint16_t endpoint_count;
    uint16_t broadcast_count;
    uint16_t discovery_count;
    uint16_t local_count;
    struct pktstun_redirect redirects[2];  /* for clients of IPv4, of IPv6 */
    struct pktstun_discovery discovery[PKTSTUN_MAX_DISCOVERY];
    uint8_t software[PKTSTUN_MAX_SOFTWARE];  /* encoded, padding included */
    uint8_t broadcasts[PKTSTUN_MAX_BROADCASTS][4];
    struct pktstun_address endpoints[PKTSTUN_MAX_ENDPOINTS];  /* the server's own */
    struct pktstun_address local[PKTSTUN_MAX_LOCAL];  /* IP addresses of the host, theirs too */
};

/* Longest reply: header, XOR-MAPPED-ADDRESS and MAPPED-ADDRESS (IPv6), the attributes of
 * discovery, SOFTWARE, FINGERPRINT. */
#define PKTSTUN_MAX_REPLY 640

/* What pktstun.stun.respond() says to a datagram: a drop; PKTSTUN_SUCCESS, or PKTSTUN_ERROR for
 * a redirect, with the same bytes in reply[0 .. *reply_length), which has room for
 * PKTSTUN_MAX_REPLY; or PKTSTUN_HANDOVER where the answer takes Python. Reads nothing outside
 * datagram[0 .. length). */
enum pktstun_verdict pktstun_answer(
    const uint8_t *datagram, size_t length,
    const struct pktstun_address *source, const struct pktstun_address *destination,
    const struct pktstun_options *options, uint8_t *reply, size_t *reply_length);

/* Bytes that the longest reply takes under these options. */
size_t pktstun_reply_bound(const struct pktstun_options *options);

/* CRC-32 of ITU V.42, as RFC 8489 section 14.7 wants it before the XOR. */
uint32_t pktstun_crc32(const uint8_t *data, size_t length);
