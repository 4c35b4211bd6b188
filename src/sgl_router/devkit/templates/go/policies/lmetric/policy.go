// Picks the healthy worker with the lowest product of the prompt tokens that it would have to
// prefill and the requests that it would serve (LMetric, arXiv 2603.15202).

package main

// What this policy reads of its input; all other keys are skipped.
type PolicyInput struct {
	Workers []Worker `json:"workers"`
	Request struct {
		PromptTokens uint64 `json:"prompt_tokens"` // estimated, of this request
	} `json:"request"`
	Entropy uint64 `json:"entropy"` // 53 random bits, new for each decision
}

type Worker struct {
	Healthy       bool   `json:"healthy"`
	Load          uint64 `json:"load"`           // requests in flight
	PendingTokens uint64 `json:"pending_tokens"` // prompt tokens sent to it and not answered yet
	PrefixMatch   uint64 `json:"prefix_match"`   // tokens of this prompt that it still holds
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
		cost := worker.cost(input.Request.PromptTokens)
		if len(ties) == 0 || cost < lowest {
			lowest, ties = cost, ties[:0]
		}
		if cost == lowest {
			ties = append(ties, index)
		}
	}
	if len(ties) == 0 {
		return PolicyOutput{}, nil
	}
	selected := ties[input.Entropy%uint64(len(ties))]
	return PolicyOutput{SelectedWorker: &selected}, nil
}

func (worker *Worker) cost(promptTokens uint64) uint64 {
	prefill := worker.PendingTokens
	if promptTokens > worker.PrefixMatch {
		prefill += promptTokens - worker.PrefixMatch
	}
	return prefill * (worker.Load + 1)
}
