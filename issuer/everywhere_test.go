package issuer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/bus/lease"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring"
)

// choir answers as it is told, and keeps what it was asked.
type choir struct {
	answers  []bus.Answer
	vouching []lease.Vouching
	asked    bus.Question
}

func (c *choir) Vouching() []lease.Vouching { return c.vouching }

func (c *choir) Ask(ctx context.Context, q bus.Question, heard func(bus.Answer)) error {
	c.asked = q
	for _, a := range c.answers {
		heard(a)
	}
	<-ctx.Done()
	return nil
}

// TestVerifyEverywhere: dissenters come first, who may vouch and is silent is named, nobody is heard
// twice, and the wait ends with the last answer that is due.
func TestVerifyEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &choir{}
		ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Asker = c })
		tokens := login(t, ti)
		good := func(agent string) bus.Answer { return bus.Answer{Agent: agent, Run: "a", Status: 200} }
		dissent := bus.Answer{Agent: "web-9", Run: "a", Status: 401, Reason: "unknown_key"}
		c.answers = []bus.Answer{good("web-2"), good("web-1"), dissent, good("web-1")}
		c.vouching = []lease.Vouching{{Agent: "web-1", Run: "a"}, {Agent: "web-2", Run: "a"}, {Agent: "web-9", Run: "a"}}
		began := time.Now()
		all, err := ti.VerifyEverywhere(t.Context(), tokens.Access, "")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range all.Agents {
			names = append(names, fmt.Sprint(s.Agent, s.Dissents))
		}
		if got := strings.Join(names, " "); got != "web-9true web-1false web-2false" || all.Status != 200 || len(all.Silent) != 0 {
			t.Errorf("got %s, status %d, silent %v", got, all.Status, all.Silent)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("all had answered, but it waited %s", took)
		}
		text, err := json.Marshal(c.asked)
		for _, part := range strings.Split(tokens.Access, ".") {
			if err != nil || strings.Contains(string(text), part) {
				t.Errorf("the question has a part of the token in it: %s (%v)", text, err)
			}
		}
		if len(c.asked.Token) != 32 || c.asked.SessionID != tokens.SessionID || c.asked.SessionSeq == nil || c.asked.KeyID == "" {
			t.Errorf("the question: got %s", text)
		}

		if _, err := ti.Revoke(t.Context(), issuer.Target{SessionID: tokens.SessionID}); err != nil {
			t.Fatal(err)
		}
		c.vouching = append(c.vouching, lease.Vouching{Agent: "web-1", Run: "b", Left: time.Minute}, lease.Vouching{Agent: "web-7", Run: "a", Serving: true})
		began = time.Now()
		all, err = ti.VerifyEverywhere(t.Context(), tokens.Access, "")
		if err != nil || all.Status != 401 || all.Reason != keyring.Revoked || !all.Agents[0].Dissents || !all.Agents[2].Dissents {
			t.Fatalf("after the revocation: got %+v, %v, want revoked, and everybody dissenting", all, err)
		}
		if got := fmt.Sprint(all.Silent); got != "[{web-1 b false 60000} {web-7 a true 0}]" {
			t.Errorf("silent: got %s, want web-1's other run and web-7", got)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("two were silent: it waited %s, want a second", took)
		}
	})
}

func TestVerifyEverywhereBounds(t *testing.T) {
	c := &choir{}
	ti := start(t, newBus(), func(_ *issuer.Config, p *issuer.Parts) { p.Asker = c })
	for name, in := range map[string][2]string{"nothing": {}, "both": {"a", "b"}, "long": {"", strings.Repeat("x", 1025)}} {
		if _, err := ti.VerifyEverywhere(t.Context(), in[0], in[1]); !isInput(err) {
			t.Errorf("VerifyEverywhere(%s): got %v, want an InputError", name, err)
		}
	}
	_, err := ti.VerifyEverywhere(t.Context(), login(t, ti).Refresh, "")
	refused(t, "VerifyEverywhere(a refresh token)", err, keyring.WrongType)
	_, err = ti.VerifyEverywhere(t.Context(), foreignToken(t), "")
	refused(t, "VerifyEverywhere(a stranger's token)", err, keyring.UnknownKey)
	if c.asked.ID != "" {
		t.Errorf("somebody was asked about what is not proven: %+v", c.asked)
	}
	alone := start(t, newBus())
	if _, err := alone.VerifyEverywhere(t.Context(), "", "j"); !errors.Is(err, issuer.ErrUnavailable) {
		t.Errorf("VerifyEverywhere without a bus: got %v, want ErrUnavailable", err)
	}
}
