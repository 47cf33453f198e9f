#ifndef PKTSTUN_REPLY_H
#define PKTSTUN_REPLY_H
#include "packet.h"
#include "reply.cdef.h"
#endif
