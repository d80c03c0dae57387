package freeport

import (
	"net"
	"testing"
)

func TestAddress(t *testing.T) {
	before, err := Address()
	if err != nil {
		t.Fatal(err)
	}
	last.Add(^uint32(step - 1)) // so that the same one is next
	taken, err := net.Listen("tcp", before)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	after, err := Address()
	if err != nil || after == before {
		t.Errorf("%s, %v, with %s taken", after, err, before)
	}
	l, err := net.Listen("tcp", after)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
