package worker

import "golang.org/x/sys/unix"

// Hide keeps what is in this process, the worker's token in its environment above all, from other programs of the same user, as the worker's are: the
// system shows them neither its environment nor its memory (PR_SET_DUMPABLE). What it starts is shown as ever. Who may trace every program
// (root, where it has all its rights) sees it all the same.
func Hide() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) } // a system that does not know it has nothing like it either
