#ifndef PKTSTUN_ROUTE_H
#define PKTSTUN_ROUTE_H
#include "packet.h"
#include "route.cdef.h"
#endif
