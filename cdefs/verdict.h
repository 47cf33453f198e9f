#ifndef PKTSTUN_VERDICT_H
#define PKTSTUN_VERDICT_H
#include "verdict.cdef.h"
#endif
