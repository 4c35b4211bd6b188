// Sends the requests of one session to one healthy worker, by rendezvous hashing: where a worker
// goes or comes, only its own sessions move. A request without a session goes to the healthy worker
// with the fewest requests in flight.

package main

// What this policy reads of its input; all other keys are skipped.
type PolicyInput struct {
	Workers []Worker `json:"workers"`
	Request struct {
		Session string `json:"session"` // empty where it has none
	} `json:"request"`
	Entropy uint64 `json:"entropy"` // 53 random bits, new for each decision
}

type Worker struct {
	URL     string `json:"url"`
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
	if input.Request.Session == "" {
		return PolicyOutput{SelectedWorker: lowestLoad(input.Workers, input.Entropy)}, nil
	}
	key := fnv1a64(input.Request.Session)
	var selected *int
	var highest uint64
	for index, worker := range input.Workers {
		score := fmix64(key ^ fnv1a64(worker.URL))
		if worker.Healthy && (selected == nil || score > highest) {
			selected, highest = &index, score
		}
	}
	return PolicyOutput{SelectedWorker: selected}, nil
}

// FNV-1a of 64 bits.
func fnv1a64(text string) uint64 {
	hash := uint64(0xcbf29ce484222325)
	for _, char := range []byte(text) {
		hash = (hash ^ uint64(char)) * 0x100000001b3
	}
	return hash
}

// The finalizer of MurmurHash3: makes one score of two hashes.
func fmix64(hash uint64) uint64 {
	hash ^= hash >> 33
	hash *= 0xff51afd7ed558ccd
	hash ^= hash >> 33
	hash *= 0xc4ceb9fe1a85ec53
	return hash ^ hash>>33
}

func lowestLoad(workers []Worker, entropy uint64) *int {
	var lowest uint64
	var ties []int
	for index, worker := range workers {
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
		return nil
	}
	return &ties[entropy%uint64(len(ties))]
}
