/* Bytes in front of the UDP payload in a frame without tags, options or extensions. */
#define PKTSTUN_IPV4_HEADERS 42
#define PKTSTUN_IPV6_HEADERS 62

/* Writes the headers of the frame that answers a datagram in front of the reply's payload,
 * as pktstun.packet.build_reply_frame() does, and returns how many bytes they take: the frame
 * begins so many bytes before payload, where there must be room. request is the frame that
 * pktstun_parse_frame took the datagram from. */
size_t pktstun_write_reply_headers(const uint8_t *request, const struct pktstun_datagram *datagram,
                                   uint8_t *payload, size_t length);
