// What the router calls: an input comes in as JSON, goes to `choose` in policy.go, and its answer
// goes out as JSON. Nothing here needs to be touched to write a policy.

package main

import (
	"encoding/json"
	"fmt"
	"runtime/debug"
	"unsafe"
)

// Below Go's default of 100, since memory never shrinks: half of what plugin.toml gives suffices.
const gcPercent = 50

// What the router holds a pointer to is held here too, or it would be collected as garbage.
var held = map[unsafe.Pointer]struct{}{}

type output struct {
	PolicyOutput
	Error *string `json:"error"`
}

// Called once, before anything else; a function of Go cannot be exported under the name init.
//
//go:wasmexport init
func start() {
	debug.SetGCPercent(gcPercent)
}

// Takes the input as JSON and returns the output as NUL-terminated JSON.
//
//go:wasmexport select_worker
func selectWorker(input unsafe.Pointer, length uint32) unsafe.Pointer {
	var answer output
	var err error
	if answer.PolicyOutput, err = decide(input, length); err != nil {
		text := err.Error()
		answer = output{Error: &text}
	}
	text, err := json.Marshal(answer)
	if err != nil {
		panic(err) // a state that is no JSON
	}
	return hold(append(text, 0))
}

func decide(text unsafe.Pointer, length uint32) (PolicyOutput, error) {
	input, err := read[PolicyInput](text, length)
	if err != nil {
		return PolicyOutput{}, err
	}
	return choose(&input)
}

// What the router has written as JSON.
func read[T any](text unsafe.Pointer, length uint32) (value T, err error) {
	if err = json.Unmarshal(unsafe.Slice((*byte)(text), length), &value); err != nil {
		err = fmt.Errorf("the input does not fit: %w", err)
	}
	return
}

//go:wasmexport alloc
func alloc(size uint32) unsafe.Pointer {
	return hold(make([]byte, max(size, 1)))
}

//go:wasmexport dealloc
func dealloc(pointer unsafe.Pointer, size uint32) {
	delete(held, pointer)
}

func hold(buffer []byte) unsafe.Pointer {
	pointer := unsafe.Pointer(unsafe.SliceData(buffer))
	held[pointer] = struct{}{}
	return pointer
}

func main() {} // is not called
