/* A position in a retired block of a TPACKET_V3 ring. */
struct pktstun_walk {
    uint32_t offset;   /* of the next frame's header, from the start of the block */
    uint32_t left;     /* frames not yet handed out */
};

/* Block ownership. The status is read with acquire and given back with release order,
 * because the kernel fills the block before it publishes the status (packet_mmap.rst). */
int pktstun_block_ready(const void *block);
void pktstun_block_release(void *block);
uint64_t pktstun_block_sequence(const void *block);

/* Starts a walk over a block that is ready. 0, or -1 if its header makes no sense. */
int pktstun_walk_begin(const void *block, size_t block_size, struct pktstun_walk *walk);

/* The next frame: 1 and *frame, 0 at the end of the block, or -1 if a header points outside
 * the block. Reads nothing outside block[0 .. block_size). */
int pktstun_walk_next(const void *block, size_t block_size, struct pktstun_walk *walk,
                      struct pktstun_frame *frame);
