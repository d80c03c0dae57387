package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// What the kernel knows of a process, from /proc: so benchmarks run on Linux.

// resident returns the bytes of memory that the process has.
func resident(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of a process, which takes Linux: %w", err)
	}
	for line := range bytes.Lines(text) {
		if fields := bytes.Fields(line); len(fields) == 3 && string(fields[0]) == "VmRSS:" {
			kB, err := strconv.ParseFloat(string(fields[1]), 64)
			return kB * 1024, err
		}
	}
	return 0, fmt.Errorf("process %d has ended", pid)
}

// cpuTime returns how long the threads of the process have run. The sum in /proc/PID/stat is in steps of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		return 0, fmt.Errorf("reading the CPU time of process %d, which takes Linux: it has no threads in /proc", pid)
	}
	var sum time.Duration
	for _, path := range threads {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) { // it has just ended
			continue
		}
		fields := bytes.Fields(text)
		if err != nil || len(fields) == 0 {
			return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
		}
		ns, err := strconv.ParseInt(string(fields[0]), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
