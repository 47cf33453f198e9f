/* A sendmmsg that fails as it is told: preloaded into a server by test_send_errors.py.
 *
 * PKTSTUN_SEND_ERROR is the errno. Of every FAIL_EVERY messages one is refused for good (the
 * caller has to leave it out). How many were, stands in the file PKTSTUN_SEND_FAILURES, a number
 * of 64 bits. It is mapped before there are workers, which may open nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>

enum { FAIL_EVERY = 7 };

static int (*real)(int, struct mmsghdr *, unsigned int, int);
static uint64_t *failures;
static int wanted;

__attribute__((constructor)) static void prepare(void)
{
    const char *number = getenv("PKTSTUN_SEND_ERROR");
    *(void **)&real = dlsym(RTLD_NEXT, "sendmmsg");
    if (!number)
        return;
    wanted = atoi(number);
    int file = open(getenv("PKTSTUN_SEND_FAILURES"), O_RDWR | O_CLOEXEC);
    failures = mmap(NULL, sizeof *failures, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (failures == MAP_FAILED)
        abort();
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
    static unsigned int position; /* of the next message, counted over all calls */
    if (!wanted)
        return real(fd, messages, count, flags);
    if (position % FAIL_EVERY == FAIL_EVERY - 1) {
        position++;
        __atomic_fetch_add(failures, 1, __ATOMIC_RELAXED);
        errno = wanted;
        return -1;
    }
    unsigned int before_next = FAIL_EVERY - 1 - position % FAIL_EVERY;
    int sent = real(fd, messages, count < before_next ? count : before_next, flags);
    if (sent > 0)
        position += (unsigned int)sent;
    return sent;
}
