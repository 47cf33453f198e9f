/* Datagrams: pktstun_answer against respond().
 *
 *   options | options beyond | repairs and alignment | source | destination | datagram */
#include "harness.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint8_t bits = take8(&input), beyond = take8(&input), shape = take8(&input);
    struct pktstun_address source = take_address(&input);
    struct pktstun_address destination = take_address(&input);
    struct exact datagram = exact_copy(input.at, input.left, shape & 7);
    repair_datagram(datagram.bytes, datagram.size, shape >> 3);

    static struct setting setting;
    static struct model_answer model;
    uint8_t reply[PKTSTUN_MAX_REPLY];
    size_t length = 0;
    make_setting(&setting, bits, beyond, &source, &destination);
    ask_model_datagram(&model, &setting, &source, &destination, datagram.bytes, datagram.size);
    verdicts_seen[check_answer(datagram.bytes, datagram.size, &source, &destination, &setting,
                               &model, reply, &length)]++;
    exact_free(&datagram);
    return 0;
}
