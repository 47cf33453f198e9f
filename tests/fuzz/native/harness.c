/* What the targets share: see harness.h. */
#include "harness.h"

#include <string.h>

#if HAS_MSAN
#include <sanitizer/msan_interface.h>
#endif

#include "bytes.h"

/* --- The input --- */

void take_bytes(struct input *input, uint8_t *bytes, size_t count)
{
    size_t there = count < input->left ? count : input->left;
    memset(bytes, 0, count);
    if (there) {
        memcpy(bytes, input->at, there);
        input->at += there;
        input->left -= there;
    }
}

uint8_t take8(struct input *input)
{
    uint8_t value;
    take_bytes(input, &value, 1);
    return value;
}

uint16_t take16(struct input *input)
{
    uint8_t bytes[2];
    take_bytes(input, bytes, sizeof bytes);
    return load16(bytes);
}

uint32_t take32(struct input *input)
{
    uint8_t bytes[4];
    take_bytes(input, bytes, sizeof bytes);
    return load32(bytes);
}

uint64_t take64(struct input *input)
{
    uint64_t high = take32(input);
    return high << 32 | take32(input);
}

struct pktstun_address take_address(struct input *input)
{
    struct pktstun_address address = {.family = take8(input) & 1 ? 6 : 4};
    take_bytes(input, address.ip, address.family == 4 ? 4 : 16);
    address.port = take16(input);
    return address;
}

/* --- Memory --- */

struct exact exact_new(size_t size, unsigned alignment, uint8_t pattern)
{
    struct exact exact = {.whole = malloc(size + alignment + (size + alignment == 0))};
    CLAIM(exact.whole, "no memory");
    exact.bytes = exact.whole + alignment;
    exact.size = size;
    if (!HAS_MSAN)
        memset(exact.bytes, pattern, size);
    return exact;
}

struct exact exact_copy(const uint8_t *bytes, size_t size, unsigned alignment)
{
    struct exact exact = exact_new(size, alignment, 0);
    if (size)
        memcpy(exact.bytes, bytes, size);
    return exact;
}

void exact_free(struct exact *exact)
{
    free(exact->whole);
    *exact = (struct exact){0};
}

void claim_initialized(const void *bytes, size_t size)
{
#if HAS_MSAN
    __msan_check_mem_is_initialized(bytes, size);
#else
    (void)bytes;
    (void)size;
#endif
}

/* --- Messages that fit --- */

/* A bit at a time, after the definition. */
static uint32_t slow_crc(const uint8_t *bytes, size_t size)
{
    uint32_t crc = 0xFFFFFFFF;
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xEDB88320 : crc >> 1;
    }
    return ~crc;
}

/* A byte at a time, with the carry added at once (RFC 1071). */
static uint32_t slow_sum(uint32_t sum, const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        sum += i % 2 ? bytes[i] : (uint32_t)bytes[i] << 8;
        if (sum > 0xFFFF)
            sum -= 0xFFFF;
    }
    return sum;
}

void repair_datagram(uint8_t *datagram, size_t size, unsigned repairs)
{
    if (repairs & REPAIR_STUN_LENGTH && size >= 20 && size - 20 <= 0xFFFF)
        store16(datagram + 2, (uint16_t)(size - 20));
    if (repairs & REPAIR_FINGERPRINT && size >= 28 && load32(datagram + size - 8) == 0x80280004)
        store32(datagram + size - 4, slow_crc(datagram, size - 8) ^ 0x5354554E);
}

void repair_frame(uint8_t *frame, size_t size, unsigned repairs)
{
    if (size < 14 || size > 0x7FFF)
        return;
    uint8_t *packet = frame + 14, *addresses;
    size_t available = size - 14, header, addresses_size;
    int ipv4 = load16(frame + 12) == 0x0800;
    if (ipv4 && available >= 20) {
        header = (size_t)(packet[0] & 15) * 4;
        addresses = packet + 12;
        addresses_size = 8;
    } else if (load16(frame + 12) == 0x86DD && available >= 40) {
        header = 40;
        addresses = packet + 8;
        addresses_size = 32;
    } else {
        return;
    }
    if (repairs & REPAIR_LENGTHS)
        store16(packet + (ipv4 ? 2 : 4), (uint16_t)(ipv4 ? available : available - 40));
    if (ipv4 && repairs & REPAIR_IP_CHECKSUM && header >= 20 && header <= available) {
        store16(packet + 10, 0);
        store16(packet + 10, (uint16_t)~slow_sum(0, packet, header));
    }
    if (available < header + 8)
        return;
    uint8_t *segment = packet + header;
    size_t length = available - header;
    repair_datagram(segment + 8, length - 8, repairs);
    if (repairs & REPAIR_LENGTHS)
        store16(segment + 4, (uint16_t)length);
    if (repairs & REPAIR_UDP_CHECKSUM) {
        store16(segment + 6, 0);
        uint32_t sum = slow_sum(17 + (uint32_t)length, addresses, addresses_size);
        uint16_t checksum = (uint16_t)~slow_sum(sum, segment, length);
        store16(segment + 6, checksum ? checksum : 0xFFFF);
    }
}

/* --- Options --- */

enum {
    ALLOW_LOOPBACK = 1,
    CHECK_DESTINATION = 2,
    SOFTWARE_SHIFT = 2, /* two bits: which text */
    KNOWS_DESTINATION = 16,
    KNOWS_SOURCE = 32,
    SOURCE_IS_BROADCAST = 64,
    DESTINATION_IS_BROADCAST = 128,
};

/* Beyond RFC 8489's Binding. */
enum {
    CLASSIC = 1,
    DISCOVERY = 2,      /* at the destination */
    ADVERTISED = 4,     /* behind a one-to-one NAT */
    SECOND = 8,         /* the destination is the second of the two addresses, and ports */
    CREDENTIALS = 16,   /* are asked for, and nobody has any */
    REDIRECT = 32,
    REDIRECT6 = 64,
    SOURCE_IS_LOCAL = 128,
};

static struct pktstun_address without_mapping(const struct pktstun_address *address)
{
    struct pktstun_address plain = {.family = 4, .port = address->port};
    if (address->family == 6) {
        for (size_t i = 0; i < 12; i++)
            if (address->ip[i] != (i < 10 ? 0 : 0xFF))
                return *address;
        memcpy(plain.ip, address->ip + 12, 4);
        return plain;
    }
    return *address;
}

static void add_endpoint(struct pktstun_options *options, const struct pktstun_address *address)
{
    options->endpoints[options->endpoint_count++] = without_mapping(address);
    options->local[options->local_count++] = without_mapping(address);
}

static void add_broadcast(struct pktstun_options *options, const struct pktstun_address *address)
{
    struct pktstun_address plain = without_mapping(address);
    if (plain.family == 4)
        memcpy(options->broadcasts[options->broadcast_count++], plain.ip, 4);
}

static size_t encode_address(uint8_t *at, uint16_t type, const struct pktstun_address *address)
{
    size_t ip = address->family == 4 ? 4 : 16;
    store16(at, type);
    store16(at + 2, (uint16_t)(4 + ip));
    at[4] = 0;
    at[5] = address->family == 4 ? 1 : 2;
    store16(at + 6, address->port);
    memcpy(at + 8, address->ip, ip);
    return 8 + ip;
}

static void add_discovery(struct setting *setting, uint8_t beyond,
                          const struct pktstun_address *destination)
{
    struct pktstun_options *options = &setting->options;
    struct pktstun_address here = without_mapping(destination);
    int second = (beyond & SECOND) != 0;
    if (here.port < 2) /* it, or the one beside it, would be 0 */
        return;
    setting->discovery = 1;
    setting->ips[second] = setting->ips[!second] = here;
    setting->ips[!second].ip[3] ^= 1;
    setting->ports[second] = here.port;
    setting->ports[!second] = here.port ^ 1;
    memcpy(setting->told, setting->ips, sizeof setting->ips);
    if (beyond & ADVERTISED)
        for (int i = 0; i < 2; i++)
            setting->told[i].ip[0] ^= 0x15;
    for (unsigned i = 0; i < 4; i++) {
        unsigned ip = i >> 1, port = i & 1;
        struct pktstun_discovery *place = &options->discovery[options->discovery_count++];
        struct pktstun_address origin = setting->told[ip], other = setting->told[!ip];
        origin.port = setting->ports[port];
        other.port = setting->ports[!port];
        place->endpoint = setting->ips[ip];
        place->endpoint.port = setting->ports[port];
        size_t length = encode_address(place->attributes, 0x802B, &origin);
        length += encode_address(place->attributes + length, 0x802C, &other);
        place->length = (uint16_t)length;
    }
}

static void add_redirect(struct setting *setting, unsigned index)
{
    static const struct pktstun_address elsewhere[] = {
        {.family = 4, .ip = {203, 0, 113, 9}, .port = 3478},
        {.family = 6, .ip = {0x20, 1, 0x0D, 0xB8, 9}, .port = 5349},
    };
    struct pktstun_redirect *redirect = &setting->options.redirects[index];
    setting->alternates[index] = elsewhere[index];
    store16(redirect->attributes, 0x0009);
    store16(redirect->attributes + 2, 4);
    redirect->attributes[6] = 3;
    redirect->length =
        (uint16_t)(8 + encode_address(redirect->attributes + 8, 0x8023, &elsewhere[index]));
}

void make_setting(struct setting *setting, uint8_t bits, uint8_t beyond,
                  const struct pktstun_address *source,
                  const struct pktstun_address *destination)
{
    static char longest[508]; /* 127 characters of four bytes each: as many as SOFTWARE holds */
    static const char *const texts[] = {NULL, "", "pktstun", longest};
    struct pktstun_options *options = &setting->options;

    for (size_t i = 0; i < sizeof longest; i += 4)
        memcpy(longest + i, "\xF0\x9F\x98\x80", 4);
    memset(setting, 0, sizeof *setting);
    options->allow_loopback = (bits & ALLOW_LOOPBACK) != 0;
    options->check_destination = (bits & CHECK_DESTINATION) != 0;
    setting->text = texts[bits >> SOFTWARE_SHIFT & 3];
    if (setting->text) {
        setting->text_length =
            setting->text == longest ? sizeof longest : strlen(setting->text);
        store16(options->software, 0x8022);
        store16(options->software + 2, (uint16_t)setting->text_length);
        memcpy(options->software + 4, setting->text, setting->text_length);
        options->software_length = (uint16_t)(4 + (setting->text_length + 3) / 4 * 4);
    }
    if (bits & KNOWS_SOURCE)
        add_endpoint(options, source);
    if (bits & KNOWS_DESTINATION)
        add_endpoint(options, destination);
    if (bits & SOURCE_IS_BROADCAST)
        add_broadcast(options, source);
    if (bits & DESTINATION_IS_BROADCAST)
        add_broadcast(options, destination);
    options->check_credentials = (beyond & CREDENTIALS) != 0;
    options->classic = (beyond & CLASSIC) != 0 && !options->check_credentials;
    if (beyond & DISCOVERY)
        add_discovery(setting, beyond, destination);
    if (beyond & SOURCE_IS_LOCAL)
        options->local[options->local_count++] = without_mapping(source);
    if (beyond & REDIRECT)
        add_redirect(setting, 0);
    if (beyond & REDIRECT6)
        add_redirect(setting, 1);
}

/* --- Claims --- */

unsigned long verdicts_seen[PKTSTUN_VERDICTS];

static void claim_no_loop(const uint8_t *reply, size_t length)
{
    static const struct pktstun_address from = {.family = 4, .ip = {192, 0, 2, 1}, .port = 3478};
    static const struct pktstun_address to = {.family = 4, .ip = {192, 0, 2, 2}, .port = 4000};
    static struct pktstun_options options = {.classic = 1};
    uint8_t answer[PKTSTUN_MAX_REPLY];
    size_t answer_length = 0;
    struct exact copy = exact_copy(reply, length, 0);
    unsigned verdict =
        pktstun_answer(copy.bytes, length, &from, &to, &options, answer, &answer_length);
    CLAIM(verdict == PKTSTUN_DROP_NOT_REQUEST, "a reply is answered: verdict %u", verdict);
    exact_free(&copy);
}

enum pktstun_verdict check_answer(const uint8_t *datagram, size_t size,
                                  const struct pktstun_address *source,
                                  const struct pktstun_address *destination,
                                  const struct setting *setting, const struct model_answer *model,
                                  uint8_t *reply, size_t *reply_length)
{
    const struct pktstun_options *options = &setting->options;
    size_t bound = pktstun_reply_bound(options);
    size_t lengths[2] = {0, 0};
    unsigned verdicts[2];
    struct exact replies[2];

    CLAIM(bound <= PKTSTUN_MAX_REPLY, "%zu bytes at most", bound);
    for (int i = 0; i < 2; i++) {
        replies[i] = exact_new(bound, 0, i ? 0x5A : 0xA5);
        verdicts[i] = pktstun_answer(datagram, size, source, destination, options,
                                     replies[i].bytes, &lengths[i]);
    }
    unsigned verdict = verdicts[0];
    size_t length = lengths[0];
    CLAIM(verdict == verdicts[1] && length == lengths[1], "another answer: %u", verdicts[1]);
    if (model->asked)
        CLAIM(verdict == model->verdict, "C says %u, respond() %u", verdict, model->verdict);
    if (verdict == PKTSTUN_SUCCESS || verdict == PKTSTUN_ERROR) {
        CLAIM(length <= bound, "%zu bytes, at most %zu were told", length, bound);
        claim_initialized(replies[0].bytes, length);
        CLAIM(memcmp(replies[0].bytes, replies[1].bytes, length) == 0, "not what was written");
        /* RFC 8489 section 14.2: byte 5 of the first attribute is the family. */
        size_t address = replies[0].bytes[25] == 1 ? 12 : 24;
        size_t more = verdict == PKTSTUN_ERROR ? sizeof options->redirects->attributes
                      : setting->discovery     ? 2 * address + options->discovery->length
                                               : address;
        CLAIM(length <= size + more + options->software_length, "%zu for %zu", length, size);
        if (model->asked) {
            CLAIM(length == model->reply_length, "respond() has %zu", model->reply_length);
            CLAIM(memcmp(replies[0].bytes, model->reply, length) == 0, "respond() says otherwise");
        }
        claim_no_loop(replies[0].bytes, length);
        memcpy(reply, replies[0].bytes, length);
        *reply_length = length;
    } else if (verdict == PKTSTUN_HANDOVER && model->asked) {
        size_t more = setting->discovery ? 96 : options->classic ? 36 : 12;
        CLAIM(model->reply_length <= size + more + options->software_length, "%zu for %zu",
              model->reply_length, size);
        if (model->reply_length)
            claim_no_loop(model->reply, model->reply_length);
    }
    CLAIM(verdict < PKTSTUN_VERDICTS && verdict != PKTSTUN_PASS, "verdict %u", verdict);
    exact_free(&replies[0]);
    exact_free(&replies[1]);
    return verdict;
}
