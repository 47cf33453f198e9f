#ifndef PKTSTUN_STUN_H
#define PKTSTUN_STUN_H
#include "packet.h"
#include "stun.cdef.h"
#endif
