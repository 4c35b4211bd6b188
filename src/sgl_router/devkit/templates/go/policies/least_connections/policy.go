// Picks the healthy worker with the fewest requests in flight.

package main

// What this policy reads of its input; all other keys are skipped.
type PolicyInput struct {
	Workers []Worker `json:"workers"`
	Entropy uint64   `json:"entropy"` // 53 random bits, new for each decision
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
	var lowest uint64
	var ties []int
	for index, worker := range input.Workers {
		if !worker.Healthy {
			continue
		}
		if len(ties) == 0 || worker.Load < lowest {
			lowest, ties = worker.Load, ties[:0]
		}
		if worker.Load == lowest {
			ties = append(ties, index)
		}
	}
	if len(ties) == 0 {
		return PolicyOutput{}, nil
	}
	// Always taking the first one would send the requests of an idle pool to a single worker.
	selected := ties[input.Entropy%uint64(len(ties))]
	return PolicyOutput{SelectedWorker: &selected}, nil
}
