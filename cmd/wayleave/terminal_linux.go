package main

import "golang.org/x/sys/unix"

const getTermios, setTermios = unix.TCGETS, unix.TCSETS

// noKey is in the place of a key that does nothing (_POSIX_VDISABLE).
const noKey = 0
