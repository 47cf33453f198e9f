/* The rate limiter: see limiter.c. */
#ifndef PKTSTUN_LIMITER_H
#define PKTSTUN_LIMITER_H

#include "packet.h"

#include "limiter.cdef.h"

#endif
