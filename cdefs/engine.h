#ifndef PKTSTUN_ENGINE_H
#define PKTSTUN_ENGINE_H
#include "limiter.h"
#include "ring.h"
#include "route.h"
#include "stun.h"
#include "engine.cdef.h"
#endif
