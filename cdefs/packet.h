#ifndef PKTSTUN_PACKET_H
#define PKTSTUN_PACKET_H
#include <stddef.h>
#include <stdint.h>
#include "verdict.h"
#include "packet.cdef.h"
#endif
