/* A sendmmsg that fails as it is told: preloaded into a server by test_send_errors.py.
 *
 * PKTSTUN_SEND_ERROR is the errno. Of every FAIL_EVERY messages one is refused for good (the
 * caller has to leave it out); EAGAIN and ENOBUFS are refused once a batch. How many were, is
 * written to the file PKTSTUN_SEND_FAILURES, one byte for each. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FAIL_EVERY = 7 };

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
    static int (*real)(int, struct mmsghdr *, unsigned int, int);
    static unsigned int position; /* of the next message, counted over all calls */
    static int note = -1;
    const char *wanted = getenv("PKTSTUN_SEND_ERROR");
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "sendmmsg");
    if (!wanted)
        return real(fd, messages, count, flags);
    if (note < 0)
        note = open(getenv("PKTSTUN_SEND_FAILURES"), O_WRONLY | O_APPEND | O_CLOEXEC);

    if (position % FAIL_EVERY == FAIL_EVERY - 1) {
        position++;
        if (write(note, "x", 1) != 1)
            abort();
        errno = atoi(wanted);
        return -1;
    }
    unsigned int before_next = FAIL_EVERY - 1 - position % FAIL_EVERY;
    int sent = real(fd, messages, count < before_next ? count : before_next, flags);
    if (sent > 0)
        position += (unsigned int)sent;
    return sent;
}
