/* The walk over a block of a TPACKET_V3 ring (Documentation/networking/packet_mmap.rst).
 *
 * The kernel fills a block with frames of any length, chained by tp_next_offset, and then
 * retires it: it stores the number of frames and at last the status word. A block is read
 * only when its status says TP_STATUS_USER, exactly num_pkts frames of it, and belongs to
 * the kernel again as soon as TP_STATUS_KERNEL is stored.
 *
 * The ring is shared, writable memory: a bug in a dead worker may have written to it. Every
 * offset that is read from it is therefore checked against the block before use. */
#include "ring.h"

#include <string.h>

#include <linux/if_ether.h>
#include <linux/if_packet.h>

/* sockaddr_ll stands behind the frame header, at the next multiple of TPACKET_ALIGNMENT. */
#define ADDRESS_OFFSET ((size_t)48)
#define FRAME_HEADER (ADDRESS_OFFSET + sizeof(struct sockaddr_ll))
_Static_assert(sizeof(struct tpacket3_hdr) == 48, "already a multiple of TPACKET_ALIGNMENT");

/* At its place in the block and not in a copy: the status is shared with the kernel. */
static uint32_t *status_of(const void *block)
{
    return &((struct tpacket_block_desc *)(uintptr_t)block)->hdr.bh1.block_status;
}

int pktstun_block_ready(const void *block)
{
    return (__atomic_load_n(status_of(block), __ATOMIC_ACQUIRE) & TP_STATUS_USER) != 0;
}

void pktstun_block_release(void *block)
{
    __atomic_store_n(status_of(block), TP_STATUS_KERNEL, __ATOMIC_RELEASE);
}

uint64_t pktstun_block_sequence(const void *block)
{
    struct tpacket_block_desc header;
    memcpy(&header, block, sizeof header);
    return header.hdr.bh1.seq_num;
}

int pktstun_walk_begin(const void *block, size_t block_size, struct pktstun_walk *walk)
{
    struct tpacket_block_desc header;
    walk->offset = walk->left = 0;
    if (block_size < sizeof header)
        return -1;
    memcpy(&header, block, sizeof header);
    walk->offset = header.hdr.bh1.offset_to_first_pkt;
    walk->left = header.hdr.bh1.num_pkts;
    return 0;
}

int pktstun_walk_next(const void *block, size_t block_size, struct pktstun_walk *walk,
                      struct pktstun_frame *frame)
{
    struct tpacket3_hdr header;
    struct sockaddr_ll address;
    const uint8_t *bytes = block;

    if (walk->left == 0)
        return 0;
    if (walk->offset > block_size || block_size - walk->offset < FRAME_HEADER)
        return -1;
    memcpy(&header, bytes + walk->offset, sizeof header);
    memcpy(&address, bytes + walk->offset + ADDRESS_OFFSET, sizeof address);
    size_t room = block_size - walk->offset;
    if (header.tp_mac > room || header.tp_snaplen > room - header.tp_mac)
        return -1;

    frame->data = bytes + walk->offset + header.tp_mac;
    frame->captured = header.tp_snaplen;
    frame->length = header.tp_len;
    frame->status = header.tp_status;
    frame->vlan_tci = (uint16_t)header.hv1.tp_vlan_tci;
    frame->vlan_tpid = header.hv1.tp_vlan_tpid;
    frame->packet_type = address.sll_pkttype;
    frame->ifindex = address.sll_ifindex;
    frame->timestamp = (uint64_t)header.tp_sec * 1000000000u + header.tp_nsec;

    walk->left--;
    if (walk->left) {
        /* Only the last frame has no successor; a step back or in place would not end. */
        if (header.tp_next_offset < FRAME_HEADER || header.tp_next_offset > room)
            return -1;
        walk->offset += header.tp_next_offset;
    }
    return 1;
}
