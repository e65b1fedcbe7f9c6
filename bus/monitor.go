package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Durability is whether a server syncs a write to its disk before it acknowledges it.
type Durability string

// What is known of a server's durability.
const (
	Synced  Durability = "synced"  // sync_always is on: an acknowledged write outlives the loss of power
	Delayed Durability = "delayed" // it is off, the default: minutes of acknowledged writes may be lost with the power
	Unknown Durability = "unknown" // nobody said where to ask
)

// CheckDurability asks a nats-server's monitoring port (as "http://127.0.0.1:8222") whether it syncs.
// An empty URL is Unknown.
func CheckDurability(ctx context.Context, monitorURL string) (Durability, error) {
	if monitorURL == "" {
		return Unknown, nil
	}
	ctx, cancel := context.WithTimeout(ctx, batchWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(monitorURL, "/")+"/jsz", nil)
	if err != nil {
		return Unknown, fmt.Errorf("asking bus.monitor_url: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return Unknown, fmt.Errorf("asking bus.monitor_url: %w; is the server's monitoring port on?", err)
	}
	defer resp.Body.Close()
	var jsz struct {
		Config *struct {
			SyncAlways bool `json:"sync_always"`
		} `json:"config"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&jsz); err != nil || resp.StatusCode != http.StatusOK || jsz.Config == nil {
		return Unknown, fmt.Errorf("asking bus.monitor_url %s: the answer (%s) is not a nats-server's /jsz", monitorURL, resp.Status)
	}
	if jsz.Config.SyncAlways {
		return Synced, nil
	}
	return Delayed, nil
}
