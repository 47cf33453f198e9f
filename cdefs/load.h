#ifndef PKTSTUN_LOAD_H
#define PKTSTUN_LOAD_H
#include "ring.h"
#include "load.cdef.h"
#endif
