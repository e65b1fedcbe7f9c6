package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// fleetStatus is what a person sees of GET /admin/v1/status.
type fleetStatus struct {
	Issuer  issuerStatus      `json:"issuer"`
	Issuers []issuerStatus    `json:"issuers"`
	Duties  map[string]string `json:"duties"`
	Agents  *struct {
		Total    int            `json:"total"`
		States   map[string]int `json:"states"`
		Vouching int            `json:"vouching"`
		Lag      int64          `json:"lag_ms"`
		Versions map[string]int `json:"versions"`
		Worst    []struct {
			Name     string  `json:"name"`
			State    string  `json:"state"`
			Version  string  `json:"version"`
			Lag      int64   `json:"lag_ms"`
			MayVouch int64   `json:"may_vouch_ms"`
			Seen     float64 `json:"seen"`
			ClockOff int64   `json:"clock_off_ms"`
			Fault    string  `json:"fault"`
		} `json:"worst"`
		More int `json:"more"`
	} `json:"agents"`
	Keys []struct {
		KeyID       string  `json:"kid"`
		Alg         string  `json:"alg"`
		State       string  `json:"state"`
		Created     float64 `json:"created"`
		ActivatesAt float64 `json:"activates_at"`
		RetiredAt   float64 `json:"retired_at"`
	} `json:"keys"`
	MoreKeys    int        `json:"more_keys"`
	RotationDue float64    `json:"rotation_due"`
	Revocations int        `json:"revocations"`
	Bus         *busStatus `json:"bus"`
	Problems    []string   `json:"problems"`
}

type issuerStatus struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Ready    bool   `json:"ready"`
	Reason   string `json:"reason"`
	Seq      uint64 `json:"seq"`
	Epoch    uint64 `json:"epoch"`
	ClockOff int64  `json:"clock_off_ms"`
}

type busStatus struct {
	Connected  bool   `json:"connected"`
	Server     string `json:"server"`
	Version    string `json:"version"`
	Sync       string `json:"sync"`
	Used       uint64 `json:"store_bytes"`
	Limit      int64  `json:"store_limit_bytes"`
	First      uint64 `json:"log_first_seq"`
	Last       uint64 `json:"log_last_seq"`
	LogBytes   uint64 `json:"log_bytes"`
	Leader     string `json:"log_leader"`
	Leaderless int    `json:"leaderless"`
	Lagging    int    `json:"replicas_behind"`
	Error      string `json:"error"`
	Peers      []struct {
		Name    string `json:"name"`
		Current bool   `json:"current"`
		Offline bool   `json:"offline"`
		Lag     uint64 `json:"lag"`
	} `json:"log_peers"`
	Checkpoint *struct {
		Seq   uint64    `json:"seq"`
		Bytes int       `json:"bytes"`
		Time  time.Time `json:"time"`
	} `json:"checkpoint"`
	Embedded *struct {
		Connections   int   `json:"connections"`
		Routes        int   `json:"routes"`
		Leafs         int   `json:"leafs"`
		SlowConsumers int64 `json:"slow_consumers"`
	} `json:"embedded"`
}

// fleet reads what the issuer told; of another version's answer, what both know.
func (s *status) fleet() *fleetStatus {
	f := new(fleetStatus)
	_ = json.Unmarshal(s.Fleet, f) // readStatus has seen that it is JSON
	return f
}

func (f *fleetStatus) table(w *tabwriter.Writer) {
	for _, i := range append([]issuerStatus{f.Issuer}, f.Issuers...) {
		state := "ready"
		if !i.Ready {
			state = "not ready: " + i.Reason
		}
		row(w, "issuer "+i.Name, i.Version, state, fmt.Sprintf("applied %d", i.Seq), "clock off "+ms(i.ClockOff))
	}
	for _, duty := range slices.Sorted(maps.Keys(f.Duties)) {
		row(w, "duty "+duty, f.Duties[duty])
	}
	f.busRows(w)
	row(w, "revocations", f.Revocations)
	for _, k := range f.Keys {
		row(w, "key "+k.KeyID, k.Alg, k.State, "made "+when(k.Created), "signs from "+when(k.ActivatesAt), "retired "+when(k.RetiredAt))
	}
	if f.MoreKeys > 0 {
		row(w, "keys", fmt.Sprintf("and %d more", f.MoreKeys))
	}
	row(w, "next rotation", when(f.RotationDue))
	f.agentRows(w)
	for _, p := range f.Problems {
		row(w, "PROBLEM", p)
	}
}

func (f *fleetStatus) agentRows(w *tabwriter.Writer) {
	a := f.Agents
	if a == nil {
		return
	}
	var states []string
	for _, state := range slices.Sorted(maps.Keys(a.States)) {
		if n := a.States[state]; n > 0 {
			states = append(states, fmt.Sprintf("%d %s", n, state))
		}
	}
	row(w, "agents", a.Total, strings.Join(states, ", "), fmt.Sprintf("%d may vouch", a.Vouching), "behind by "+ms(a.Lag)+" at most")
	for _, v := range slices.Sorted(maps.Keys(a.Versions)) {
		row(w, "  version", v, a.Versions[v])
	}
	for _, g := range a.Worst {
		vouch := "vouches no more"
		if g.MayVouch < 0 {
			vouch = "vouches without end"
		} else if g.MayVouch > 0 {
			vouch = "may vouch for " + ms(g.MayVouch)
		}
		row(w, "  "+g.Name, g.State, "seen "+when(g.Seen), "behind "+ms(g.Lag), vouch, g.Fault)
	}
	if a.More > 0 {
		row(w, "  ", fmt.Sprintf("and %d more that are not ok", a.More))
	}
}

func (f *fleetStatus) busRows(w *tabwriter.Writer) {
	b := f.Bus
	if b == nil {
		row(w, "bus", "not looked at yet")
		return
	}
	row(w, "bus", b.Server, b.Version, map[bool]string{true: "connected", false: "not connected"}[b.Connected], "sync "+b.Sync, size(b.Used)+" of "+size(uint64(max(b.Limit, 0))))
	row(w, "  log", fmt.Sprintf("%d to %d", b.First, b.Last), size(b.LogBytes), "led by "+b.Leader, fmt.Sprintf("%d streams without leader, %d copies behind", b.Leaderless, b.Lagging))
	for _, p := range b.Peers {
		row(w, "  copy "+p.Name, map[bool]string{true: "current", false: "behind"}[p.Current], map[bool]string{true: "offline", false: "online"}[p.Offline], fmt.Sprintf("lacks %d", p.Lag))
	}
	if c := b.Checkpoint; c != nil {
		row(w, "  checkpoint", fmt.Sprintf("of entry %d", c.Seq), size(uint64(c.Bytes)), c.Time.UTC().Format(time.RFC3339))
	}
	if e := b.Embedded; e != nil {
		row(w, "  server", fmt.Sprintf("%d connections, %d routes, %d leaf nodes, %d slow consumers", e.Connections, e.Routes, e.Leafs, e.SlowConsumers))
	}
	if b.Error != "" {
		row(w, "  error", b.Error)
	}
}

// ms shows milliseconds.
func ms(n int64) string {
	d := time.Duration(n) * time.Millisecond
	if d.Abs() > time.Second {
		d = d.Round(100 * time.Millisecond)
	}
	return d.String()
}

// size shows bytes; 0 is "-".
func size(n uint64) string {
	switch {
	case n == 0:
		return "-"
	case n < 1<<20:
		return fmt.Sprintf("%.1f kB", float64(n)/1000)
	case n < 1<<30:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(n)/1e9)
}

// clean quotes what could move the cursor of a terminal.
func clean(s string) string {
	if printable(s) {
		return s
	}
	return strconv.Quote(s)
}
