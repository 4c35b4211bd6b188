// Fills engines one after the other, so that idle ones can be stopped.

package main

import (
	"cmp"
	"slices"
)

const defaultLimit = 8

// What this policy reads of its input; all other keys are skipped.
type PolicyInput struct {
	Workers []Worker `json:"workers"`
	Config  struct {
		Limit *uint64 `json:"limit"` // a worker with this many requests in flight is full
	} `json:"config"`
}

type Worker struct {
	Healthy bool   `json:"healthy"`
	Load    uint64 `json:"load"` // requests in flight
}

// SelectedWorker is an index into the workers, or nil for "no worker should take this request".
// State is merged into the state of the next input key by key, nil leaves it as it is.
type PolicyOutput struct {
	SelectedWorker *int           `json:"selected_worker"`
	State          map[string]any `json:"state"`
}

func choose(input *PolicyInput) (PolicyOutput, error) {
	limit := uint64(defaultLimit)
	if input.Config.Limit != nil {
		limit = *input.Config.Limit
	}
	byLoad := func(a, b int) int {
		return cmp.Compare(input.Workers[a].Load, input.Workers[b].Load)
	}
	var healthy []int
	for index, worker := range input.Workers {
		if worker.Healthy {
			healthy = append(healthy, index)
		}
	}
	full := func(index int) bool { return input.Workers[index].Load >= limit }
	free := slices.DeleteFunc(slices.Clone(healthy), full)
	var selected int // MaxFunc and MinFunc take the first of equals
	switch {
	case len(free) > 0:
		selected = slices.MaxFunc(free, byLoad)
	case len(healthy) > 0:
		selected = slices.MinFunc(healthy, byLoad)
	default:
		return PolicyOutput{}, nil
	}
	return PolicyOutput{SelectedWorker: &selected}, nil
}
