/* What becomes of a frame or a datagram: the C side of one list of names.
 *
 * Python knows the drops as pktstun.packet.FrameDrop and pktstun.stun.Drop; a
 * test holds the names of the three lists against each other. spec: RFC 8489 section 6.3
 * and 14, and the receive policy in pktstun/packet.py. The numbers stand in the shared page,
 * which outlives a version: new ones go to the end. */
enum pktstun_verdict {
    PKTSTUN_PASS,          /* nothing decided yet: the next check goes on */
    PKTSTUN_SUCCESS,       /* answered with a Binding success response */
    PKTSTUN_ERROR,         /* answered with a Binding error response */
    PKTSTUN_HANDOVER,      /* well-formed, but for respond() in Python to answer */

    /* The frame: pktstun/packet.py, receive(), in its order. */
    PKTSTUN_DROP_NOT_HOST,
    PKTSTUN_DROP_TRUNCATED,
    PKTSTUN_DROP_VLAN,
    PKTSTUN_DROP_NOT_IP,
    PKTSTUN_DROP_BAD_IP,
    PKTSTUN_DROP_BAD_IP_CHECKSUM,
    PKTSTUN_DROP_FRAGMENT,
    PKTSTUN_DROP_NOT_UDP,
    PKTSTUN_DROP_IP_OPTIONS,
    PKTSTUN_DROP_IPV6_EXTENSION,
    PKTSTUN_DROP_BAD_UDP_LENGTH,
    PKTSTUN_DROP_NO_UDP_CHECKSUM,
    PKTSTUN_DROP_BAD_UDP_CHECKSUM,
    PKTSTUN_DROP_TOO_LONG,

    /* The datagram: pktstun/stun/_respond.py, respond(), in its order. */
    PKTSTUN_DROP_BAD_SOURCE,
    PKTSTUN_DROP_OWN_SOURCE,
    PKTSTUN_DROP_NOT_FOR_US,
    PKTSTUN_DROP_SHORT,
    PKTSTUN_DROP_NOT_STUN,
    PKTSTUN_DROP_BAD_LENGTH,
    PKTSTUN_DROP_NO_COOKIE,
    PKTSTUN_DROP_NOT_REQUEST,
    PKTSTUN_DROP_UNKNOWN_METHOD,
    PKTSTUN_DROP_MALFORMED,
    PKTSTUN_DROP_BAD_FINGERPRINT,

    /* The engine. */
    PKTSTUN_DROP_OVER_BUDGET,    /* this second's share of work for Python is used up */
    PKTSTUN_DROP_INTERNAL_ERROR, /* respond() raised: a bug, which costs one datagram */
    PKTSTUN_DROP_POISON,         /* a frame on which two workers died: a bug, too */
    PKTSTUN_DROP_RATE_LIMITED,   /* its source or its network asks too often */

    PKTSTUN_VERDICTS
};
