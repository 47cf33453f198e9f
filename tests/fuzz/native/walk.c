/* Blocks of a ring, whatever is in them: the walk ends, stays inside, and goes forward.
 *
 *   alignment | block
 *
 * The kernel's blocks lie on pages; only what asks for the status needs any alignment. Every frame
 * is parsed and answered, as in the loop. */
#include <string.h>

#include <linux/if_packet.h>

#include "harness.h"
#include "ring.h"

enum { SHORTEST_STEP = 48 + sizeof(struct sockaddr_ll) };

static void check_ownership(struct exact *block)
{
    size_t at = offsetof(struct tpacket_block_desc, hdr.bh1.block_status);
    uint32_t status, kernel = TP_STATUS_KERNEL;
    struct exact before = exact_copy(block->bytes, block->size, 0);
    memcpy(&status, block->bytes + at, sizeof status);
    CLAIM(pktstun_block_ready(block->bytes) == (int)(status & TP_STATUS_USER), "not ready");
    (void)pktstun_block_sequence(block->bytes);
    pktstun_block_release(block->bytes);
    memcpy(before.bytes + at, &kernel, sizeof kernel);
    CLAIM(memcmp(block->bytes, before.bytes, block->size) == 0, "more than the status changed");
    exact_free(&before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct pktstun_options options = {.allow_loopback = 1};
    struct input input = {data, size};
    unsigned alignment = take8(&input) & 7;
    struct exact block = exact_copy(input.at, input.left, alignment);
    struct pktstun_walk walk;
    int state = pktstun_walk_begin(block.bytes, block.size, &walk);
    CLAIM((state == 0) == (block.size >= sizeof(struct tpacket_block_desc)), "%d", state);
    size_t frames = 0;
    while (state >= 0) {
        struct pktstun_frame frame;
        uint32_t offset = walk.offset, left = walk.left;
        state = pktstun_walk_next(block.bytes, block.size, &walk, &frame);
        if (state <= 0)
            break;
        frames++;
        CLAIM(frames <= block.size / SHORTEST_STEP, "%zu frames", frames);
        CLAIM(walk.left == left - 1, "%u frames left", walk.left);
        CLAIM(walk.left == 0 || walk.offset >= offset + SHORTEST_STEP, "no step forward");
        CLAIM(frame.data >= block.bytes && frame.data <= block.bytes + block.size
                  && frame.captured <= (size_t)(block.bytes + block.size - frame.data),
              "a frame outside the block");
        claim_initialized(&frame.timestamp, sizeof frame.timestamp);

        struct pktstun_datagram datagram;
        unsigned verdict = pktstun_parse_frame(&frame, &datagram);
        if (verdict == PKTSTUN_PASS) {
            uint8_t reply[PKTSTUN_MAX_REPLY];
            size_t length;
            verdict = pktstun_answer(datagram.payload, datagram.length, &datagram.source,
                                     &datagram.destination, &options, reply, &length);
        }
        verdicts_seen[verdict]++;
    }
    /* Having ended, it stays ended. */
    if (state == 0) {
        struct pktstun_frame frame;
        CLAIM(pktstun_walk_next(block.bytes, block.size, &walk, &frame) == 0, "on it goes");
    }
    if (alignment == 0 && block.size >= sizeof(struct tpacket_block_desc))
        check_ownership(&block);
    exact_free(&block);
    return 0;
}
