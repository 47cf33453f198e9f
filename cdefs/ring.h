#ifndef PKTSTUN_RING_H
#define PKTSTUN_RING_H
#include "packet.h"
#include "ring.cdef.h"
#endif
