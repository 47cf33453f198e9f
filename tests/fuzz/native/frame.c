/* Frames: pktstun_parse_frame against receive(), pktstun_answer against respond() on what is in
 * them, and pktstun_write_reply_headers against build_reply_frame().
 *
 *   options | options beyond | repairs and alignment | what the ring says | if it says so: VLAN TCI, length on the
 *   wire, padding | frame */
#include <linux/if_packet.h>
#include <string.h>

#include "harness.h"
#include "reply.h"

enum {
    PACKET_TYPE = 7,
    NOT_READY = 8,
    VALID = 16,
    TAGGED = 32,
    OTHER_LENGTH = 64,
    PADDED = 128, /* with zeros, so that small inputs make long frames */
};

static int is_same(const struct pktstun_address *one, const struct pktstun_address *other)
{
    return one->family == other->family && one->port == other->port
           && one->scope == other->scope && memcmp(one->ip, other->ip, sizeof one->ip) == 0;
}

static void check_reply_frame(const struct exact *request, const struct pktstun_datagram *datagram,
                              const uint8_t *reply, size_t length,
                              const struct model_answer *model)
{
    size_t headers =
        datagram->source.family == 4 ? PKTSTUN_IPV4_HEADERS : PKTSTUN_IPV6_HEADERS;
    struct exact frame = exact_new(headers + length, 0, 0xA5);
    memcpy(frame.bytes + headers, reply, length);
    size_t written =
        pktstun_write_reply_headers(request->bytes, datagram, frame.bytes + headers, length);
    CLAIM(written == headers, "%zu bytes of headers", written);
    claim_initialized(frame.bytes, frame.size);
    CLAIM(memcmp(frame.bytes + headers, reply, length) == 0, "the payload is another");
    CLAIM(memcmp(frame.bytes, request->bytes + 6, 6) == 0
              && memcmp(frame.bytes + 6, request->bytes, 6) == 0, "to another neighbour");
    if (model->asked)
        CLAIM(frame.size == model->frame_length
                  && memcmp(frame.bytes, model->frame, frame.size) == 0, "another frame");

    /* Whoever receives it must find it good. */
    struct pktstun_frame back = {
        .data = frame.bytes, .captured = (uint32_t)frame.size, .length = (uint32_t)frame.size};
    struct pktstun_datagram found;
    unsigned verdict = pktstun_parse_frame(&back, &found);
    CLAIM(verdict == PKTSTUN_PASS, "our frame is dropped: verdict %u", verdict);
    CLAIM(is_same(&found.source, &datagram->destination)
              && is_same(&found.destination, &datagram->source), "not exchanged");
    CLAIM(found.length == length && found.payload == frame.bytes + headers, "not the payload");
    exact_free(&frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint8_t bits = take8(&input), beyond = take8(&input), shape = take8(&input);
    uint8_t ring = take8(&input);
    struct pktstun_frame frame = {.packet_type = ring & PACKET_TYPE};
    frame.status = (ring & NOT_READY ? (uint32_t)TP_STATUS_CSUMNOTREADY : 0)
                   | (ring & VALID ? (uint32_t)TP_STATUS_CSUM_VALID : 0);
    if (ring & TAGGED) {
        frame.status |= TP_STATUS_VLAN_VALID;
        frame.vlan_tci = take16(&input);
    }
    uint16_t wire = ring & OTHER_LENGTH ? take16(&input) : 0;
    size_t padding = ring & PADDED ? (size_t)take8(&input) * 16 : 0;

    struct exact bytes = exact_new(input.left + padding, shape & 7, 0);
    if (input.left)
        memcpy(bytes.bytes, input.at, input.left);
    memset(bytes.bytes + input.left, 0, padding);
    repair_frame(bytes.bytes, bytes.size, shape >> 3);
    frame.data = bytes.bytes;
    frame.captured = (uint32_t)bytes.size;
    frame.length = ring & OTHER_LENGTH ? wire : frame.captured;

    static struct setting setting;
    static struct model_answer model;
    struct pktstun_datagram datagram;
    unsigned verdict = pktstun_parse_frame(&frame, &datagram);
    claim_initialized(&datagram, sizeof datagram);
    /* Addresses are known of what has passed only. */
    if (verdict != PKTSTUN_PASS)
        bits &= 0x0F, beyond = 0;
    make_setting(&setting, bits, beyond, &datagram.source, &datagram.destination);
    ask_model_frame(&model, &setting, &frame);
    if (verdict == PKTSTUN_PASS) {
        uint8_t reply[PKTSTUN_MAX_REPLY];
        size_t length = 0;
        CLAIM(datagram.payload >= frame.data
                  && datagram.length <= PKTSTUN_MAX_DATAGRAM
                  && datagram.payload + datagram.length <= frame.data + frame.captured,
              "a payload outside the frame");
        verdict = check_answer(datagram.payload, datagram.length, &datagram.source,
                               &datagram.destination, &setting, &model, reply, &length);
        if (verdict == PKTSTUN_SUCCESS || verdict == PKTSTUN_ERROR)
            check_reply_frame(&bytes, &datagram, reply, length, &model);
    } else if (model.asked) {
        CLAIM(verdict == model.verdict, "C says %u, the model %u", verdict, model.verdict);
    }
    verdicts_seen[verdict]++;
    exact_free(&bytes);
    return 0;
}
