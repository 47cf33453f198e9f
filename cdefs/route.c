/* Whether the kernel's routing would send a reply back the way the request came.
 *
 * A reply frame that is made here passes the routing table by, so it is made only where that
 * table would have said the same: out of this interface, to this neighbour. The supervisor
 * boils the table down to a few prefixes (pktstun/kernel/route.py) and writes them anew when
 * something changes; everything that is not in it goes through the UDP socket.
 *
 * The table is shared memory with a version around it that is odd while it is written: a reader
 * copies it and believes the copy only if the version was even, and the same before and after. */
#include "route.h"

#include <string.h>

enum { MAC = 6 };

void pktstun_routes_publish(struct pktstun_routes *shared, const struct pktstun_routes *routes)
{
    uint64_t version = shared->version;
    __atomic_store_n(&shared->version, version + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    shared->count = routes->count;
    memcpy(shared->entries, routes->entries, sizeof shared->entries);
    __atomic_store_n(&shared->version, version + 2, __ATOMIC_RELEASE);
}

void pktstun_routes_refresh(const struct pktstun_routes *shared, struct pktstun_routes *own)
{
    uint64_t version = __atomic_load_n(&shared->version, __ATOMIC_ACQUIRE);
    if (version == own->version)
        return;
    memcpy(own, shared, sizeof *own);
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (version % 2 || __atomic_load_n(&shared->version, __ATOMIC_RELAXED) != version) {
        own->count = 0;
        own->version = UINT64_MAX; /* odd: no version that is believed */
        return;
    }
    own->version = version;
    if (own->count > PKTSTUN_MAX_ROUTES)
        own->count = 0;
}

static int covers(const struct pktstun_route *route, const struct pktstun_address *address)
{
    size_t bytes = route->prefix / 8, bits = route->prefix % 8;
    if (route->family != address->family || route->prefix > (route->family == 4 ? 32 : 128)
        || memcmp(route->ip, address->ip, bytes) != 0)
        return 0;
    return bits == 0 || (route->ip[bytes] ^ address->ip[bytes]) >> (8 - bits) == 0;
}

/* Whether a frame came from somebody else on the link, as its MAC addresses go: not from a
 * group, from nobody, or from ourselves. */
static int has_neighbour(const uint8_t *frame)
{
    static const uint8_t nobody[MAC];
    const uint8_t *source = frame + MAC;
    return !(source[0] & 1) && memcmp(source, nobody, MAC) != 0
           && memcmp(source, frame, MAC) != 0;
}

enum pktstun_return pktstun_return_path(const struct pktstun_routes *routes,
                                        const struct pktstun_address *source,
                                        const uint8_t *frame)
{
    for (uint64_t i = 0; i < routes->count; i++) {
        const struct pktstun_route *route = &routes->entries[i];
        if (!covers(route, source))
            continue;
        if (!route->direct)
            return PKTSTUN_RETURN_OTHER_WAY;
        if (!has_neighbour(frame)
            || (route->has_gateway && memcmp(route->gateway, frame + MAC, MAC) != 0))
            return PKTSTUN_RETURN_OTHER_NEIGHBOUR;
        return PKTSTUN_RETURN_DIRECT;
    }
    return PKTSTUN_RETURN_OTHER_WAY;
}
