// Picks a healthy worker at random, each as often as its weight says.

package main

import "fmt"

// What this policy reads of its input; all other keys are skipped.
type PolicyInput struct {
	Workers []Worker `json:"workers"`
	Config  struct {
		// Worker URL to weight; a worker that is not in it has weight 1.
		Weights map[string]float64 `json:"weights"`
	} `json:"config"`
	Entropy uint64 `json:"entropy"` // 53 random bits, new for each decision
}

type Worker struct {
	URL     string `json:"url"`
	Healthy bool   `json:"healthy"`
}

// SelectedWorker is an index into the workers, or nil for "no worker should take this request".
// State is merged into the state of the next input key by key, nil leaves it as it is.
type PolicyOutput struct {
	SelectedWorker *int           `json:"selected_worker"`
	State          map[string]any `json:"state"`
}

func choose(input *PolicyInput) (PolicyOutput, error) {
	for url, weight := range input.Config.Weights {
		if weight < 0 {
			return PolicyOutput{}, fmt.Errorf("weight of %s must be a number >= 0, not %g", url, weight)
		}
	}
	weights := make([]float64, len(input.Workers)) // 0 for those that are not to be picked
	total := 0.0
	for index, worker := range input.Workers {
		if !worker.Healthy {
			continue
		}
		weight, named := input.Config.Weights[worker.URL]
		if !named {
			weight = 1
		}
		weights[index] = weight
		total += weight
	}
	target := float64(input.Entropy) / (1 << 53) * total

	// The workers lie side by side on a line from 0 to total. The one under the target is the last
	// that begins at or before it; asking for the beginning, not the end, leaves no gap at total
	// into which a rounded target could fall.
	var selected *int
	begin := 0.0
	for index, weight := range weights {
		if weight > 0 && begin <= target {
			selected = &index
			begin += weight
		}
	}
	return PolicyOutput{SelectedWorker: selected}, nil
}
