/* The specification as a process: see model.py for the records.
 *
 * Plain pipes, so that a harness with any sanitizer can talk to an interpreter without one. The
 * process is started at the first question and ends with the harness, when its input does. */
#include <errno.h>
#include <linux/if_packet.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bytes.h"
#include "harness.h"

struct record {
    size_t size;
    uint8_t bytes[1 << 17];
};

static struct record record;
static int to_model = -1, from_model = -1;

static void put(const void *bytes, size_t size)
{
    CLAIM(size <= sizeof record.bytes - record.size, "%zu bytes do not fit", size);
    if (size)
        memcpy(record.bytes + record.size, bytes, size);
    record.size += size;
}

static void put8(unsigned value)
{
    uint8_t byte = (uint8_t)value;
    put(&byte, 1);
}

static void put16(size_t value)
{
    uint8_t bytes[2];
    store16(bytes, (uint16_t)value);
    put(bytes, sizeof bytes);
}

static void put32(uint32_t value)
{
    uint8_t bytes[4];
    store32(bytes, value);
    put(bytes, sizeof bytes);
}

static void put_address(const struct pktstun_address *address)
{
    put8(address->family);
    put(address->ip, sizeof address->ip);
    put16(address->port);
}

static void begin(uint8_t kind, const struct setting *setting)
{
    const struct pktstun_options *options = &setting->options;
    record.size = 4; /* the length comes last */
    put8(kind);
    size_t start = record.size;
    put16(0);
    put8(options->allow_loopback);
    put8(options->check_destination);
    put8(setting->text != NULL);
    put16(setting->text_length);
    put(setting->text, setting->text_length);
    put8(options->endpoint_count);
    for (size_t i = 0; i < options->endpoint_count; i++)
        put_address(&options->endpoints[i]);
    put8(options->broadcast_count);
    for (size_t i = 0; i < options->broadcast_count; i++)
        put(options->broadcasts[i], 4);
    put8(options->local_count);
    for (size_t i = 0; i < options->local_count; i++)
        put_address(&options->local[i]);
    put8(options->check_credentials);
    put8(options->classic);
    for (size_t i = 0; i < 2; i++) {
        put8(setting->alternates[i].family != 0);
        put_address(&setting->alternates[i]);
    }
    put8((unsigned)setting->discovery);
    for (size_t i = 0; i < 2; i++) {
        put_address(&setting->ips[i]);
        put_address(&setting->told[i]);
        put16(setting->ports[i]);
    }
    store16(record.bytes + start, (uint16_t)(record.size - start - 2));
}

/* 0 without a model. */
static int start_model(void)
{
    const char *command = getenv("PKTSTUN_FUZZ_MODEL");
    int down[2], up[2];
    if (to_model >= 0 || !command || !*command)
        return to_model >= 0;
    CLAIM(pipe(down) == 0 && pipe(up) == 0, "no pipes");
    pid_t child = fork();
    CLAIM(child >= 0, "no process");
    if (child == 0) {
        dup2(down[0], STDIN_FILENO);
        dup2(up[1], STDOUT_FILENO);
        close(down[0]), close(down[1]), close(up[0]), close(up[1]);
        /* The sanitizers' runtimes have no business there. */
        unsetenv("LD_PRELOAD");
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(down[0]);
    close(up[1]);
    to_model = down[1];
    from_model = up[0];
    signal(SIGPIPE, SIG_IGN);
    return 1;
}

static void transfer(int write_it, uint8_t *bytes, size_t size)
{
    while (size) {
        ssize_t done = write_it ? write(to_model, bytes, size) : read(from_model, bytes, size);
        if (done < 0 && errno == EINTR) /* libFuzzer's timer */
            continue;
        CLAIM(done > 0, "the model is gone: what it said last is above");
        bytes += done;
        size -= (size_t)done;
    }
}

static void ask(struct model_answer *answer)
{
    uint8_t head[5];
    store32(record.bytes, (uint32_t)(record.size - 4));
    transfer(1, record.bytes, record.size);
    transfer(0, head, sizeof head);
    answer->verdict = head[0];
    answer->reply_length = load16(head + 1);
    answer->frame_length = load16(head + 3);
    CLAIM(answer->reply_length <= sizeof answer->reply
              && answer->frame_length <= sizeof answer->frame, "a reply of %zu bytes",
          answer->reply_length);
    transfer(0, answer->reply, answer->reply_length);
    transfer(0, answer->frame, answer->frame_length);
    answer->asked = 1;
}

void ask_model_datagram(struct model_answer *answer, const struct setting *setting,
                        const struct pktstun_address *source,
                        const struct pktstun_address *destination, const uint8_t *datagram,
                        size_t size)
{
    answer->asked = 0;
    if (!start_model())
        return;
    begin('D', setting);
    put_address(source);
    put_address(destination);
    put(datagram, size);
    ask(answer);
}

void ask_model_frame(struct model_answer *answer, const struct setting *setting,
                     const struct pktstun_frame *frame)
{
    int tagged = (frame->status & TP_STATUS_VLAN_VALID) != 0;
    answer->asked = 0;
    if (!start_model())
        return;
    begin('F', setting);
    put32(frame->length);
    put8(frame->packet_type);
    put8((unsigned)tagged);
    put16(tagged ? frame->vlan_tci & 0x0FFF : 0);
    put8(frame->status & TP_STATUS_CSUMNOTREADY ? 2 : frame->status & TP_STATUS_CSUM_VALID ? 1 : 0);
    put(frame->data, frame->captured);
    ask(answer);
}
