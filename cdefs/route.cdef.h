#define PKTSTUN_MAX_ROUTES 64

/* Where replies to a network may go: one entry of the table that pktstun.kernel.return_paths
 * makes. */
struct pktstun_route {
    uint8_t family;          /* 4 or 6 */
    uint8_t prefix;          /* length in bits */
    uint8_t direct;          /* the reply may leave the way the request came */
    uint8_t has_gateway;     /* the request must have come from this neighbour */
    uint8_t gateway[6];      /* its MAC address */
    uint8_t ip[16];          /* network byte order; IPv4 fills the first 4 bytes */
};

/* The table, longest prefix first. The supervisor writes it while workers read it. */
struct pktstun_routes {
    uint64_t version;        /* odd while it is being written */
    uint64_t count;
    struct pktstun_route entries[PKTSTUN_MAX_ROUTES];
};

/* How the reply to a request may leave. */
enum pktstun_return {
    PKTSTUN_RETURN_DIRECT,
    PKTSTUN_RETURN_OTHER_WAY,       /* not out of this interface */
    PKTSTUN_RETURN_OTHER_NEIGHBOUR  /* not to the neighbour that it came from */
};

/* Writes the entries where workers read them. */
void pktstun_routes_publish(struct pktstun_routes *shared, const struct pktstun_routes *routes);

/* Takes over what is shared if its version is another; what is just being written is taken for
 * an empty table, under which nothing is direct. */
void pktstun_routes_refresh(const struct pktstun_routes *shared, struct pktstun_routes *own);

/* The way back to the source of a request, by the first entry that covers it. frame: that of
 * the request, which begins with destination and source MAC address. */
enum pktstun_return pktstun_return_path(const struct pktstun_routes *routes,
                                        const struct pktstun_address *source,
                                        const uint8_t *frame);
